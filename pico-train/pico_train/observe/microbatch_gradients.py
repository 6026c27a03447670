"""The gradient of each micro-batch by itself, out of the backward passes that training does
anyway."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class MicroBatchGradients:
    """Takes the gradient of each micro-batch out of `.grad`, and puts their sum back.

    Each pass finds `.grad` empty and so leaves its own gradient there, exact to the last bit, which
    a difference of sums would not be. The sum is formed as autograd forms it, one addition in place
    a pass, in the order of the passes: training goes on with the same bits.
    """

    parameters: dict[str, nn.Parameter]
    dtype: torch.dtype
    terms: list[int] = field(default_factory=list)
    """Of the loss, in each micro-batch so far."""
    stacks: dict[str, torch.Tensor] = field(default_factory=dict)
    """Name -> (micro-batches, and the parameter's shape) on CPU: gradients of the mean loss of
    each."""
    _sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def take(self, terms: int, micro_batches: int) -> None:
        """The gradient that a pass over `terms` terms has just left, of `micro_batches` passes in
        all."""
        index = len(self.terms)
        self.terms.append(terms)
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            if name not in self.stacks:
                self.stacks[name] = torch.zeros(micro_batches, *gradient.shape, dtype=self.dtype)
            self.stacks[name][index] = gradient / max(terms, 1)
            self._sums[name] = self._sums[name].add_(gradient) if name in self._sums else gradient
            parameter.grad = None

    def put_back(self) -> None:
        """Leave in `.grad` what the passes would have left there by themselves."""
        for name, total in self._sums.items():
            self.parameters[name].grad = total
        self._sums = {}
