"""The gradient of each micro-batch, taken from the backward passes that training runs anyway."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class MicroBatchGradients:
    """The gradients of an update's micro-batches: taken out of `.grad`, their sum put back.

    Each pass finds `.grad` empty and so leaves its own gradient there, exact to the last bit; the
    difference of two sums would not be. The sum is computed as autograd would, by one addition in
    place after each pass, in the same order: training goes on with the same bits.
    """

    parameters: dict[str, nn.Parameter]
    dtype: torch.dtype
    terms: list[int] = field(default_factory=list)
    """Terms of the loss in each micro-batch so far."""
    stacks: dict[str, torch.Tensor] = field(default_factory=dict)
    """Name -> (micro-batches, *the parameter's shape) on CPU: gradients of each one's mean loss."""
    _sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def take(self, terms: int, micro_batches: int) -> None:
        """Take the gradient that a pass over `terms` terms has left, one of `micro_batches`."""
        index = len(self.terms)
        self.terms.append(terms)
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            if name not in self.stacks:
                # Zeros, because a pass may give this parameter no gradient.
                self.stacks[name] = torch.zeros(
                    micro_batches, *gradient.shape, dtype=self.dtype
                )
            # A micro-batch may consist of ignored tokens alone, which are no terms.
            self.stacks[name][index] = gradient / max(terms, 1)
            self._sums[name] = (
                self._sums[name].add_(gradient) if name in self._sums else gradient
            )
            parameter.grad = None

    def put_back(self) -> None:
        """Leave in `.grad` the sum that the passes would have left there by themselves."""
        for name, total in self._sums.items():
            self.parameters[name].grad = total
        self._sums = {}
