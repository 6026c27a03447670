"""Outputs of modules, captured by hooks while a decoder runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from pico_train.model.decoder import Decoder


@dataclass
class Activations:
    """Tensors of `rows` rows on CPU, filled part by part.

    If every position is kept they are the largest thing in memory, and joining parts at the end
    would need twice as much.
    """

    rows: int
    dtype: torch.dtype
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, part: torch.Tensor) -> None:
        """Add the next rows of `name`, (rows of the part, width), from any device."""
        if name not in self.tensors:
            self.tensors[name] = torch.empty(self.rows, part.shape[1], dtype=self.dtype)
        start = self.filled.get(name, 0)
        self.filled[name] = start + len(part)
        self.tensors[name][start : self.filled[name]] = part


@contextmanager
def capture(
    decoder: Decoder,
    modules: Sequence[str],
    pick: Callable[[torch.Tensor], torch.Tensor],
    activations: Activations,
) -> Iterator[None]:
    """While active, add `pick(output)` of each of `modules` to `activations` at every forward pass.

    The head is the exception: the loss never calls it as a module. Its output is computed from that
    of the last norm, at the kept positions alone. The rule "mean" allows this too, since a mean
    passes through a linear map.
    """

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: activations.add(name, pick(output))

    def keep_logits(name: str) -> Callable[..., None]:
        # The weight may require a gradient; logits that are kept must carry no graph.
        weight = decoder.lm_head.weight.detach()
        return lambda module, inputs, output: activations.add(name, pick(output) @ weight.T)

    handles = []
    for name in modules:
        module = decoder.get_submodule(name)
        if module is decoder.lm_head:
            handle = decoder.model.norm.register_forward_hook(keep_logits(name))
        else:
            handle = module.register_forward_hook(keep(name))
        handles.append(handle)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
