"""Activations that are formed again in the backward pass instead of kept, where that costs next to
no time.

A product keeps its factors for the gradients. Where such a factor is an elementwise function of
what is kept anyway (a norm of the residual stream, the parts of SwiGLU), it need not be kept as
well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.autograd.graph import saved_tensors_hooks

_watchers: list[Callable[[torch.Tensor], None]] = []


class _Recomputed:
    """Takes the place of a tensor that is to be formed again: its shape, by which views of it
    differ."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape


@contextmanager
def recompute_in_backward(
    result: torch.Tensor, form: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Yields `result`; what is computed in this block does not keep it, but has it formed by
    `form(*inputs)` once a backward pass, and holds it from its first use there to its last.

    `result` is contiguous and what `form(*inputs)` gives, to the last bit. Gradients are the same
    to the last bit. Nothing that the block computes with may be changed in place before the
    backward pass, which autograd no longer notices; and hooks on saved tensors that are set around
    the block see nothing of it.
    """
    try:
        address, size, dtype = result.data_ptr(), result.numel(), result.dtype
    except RuntimeError:  # within torch.func, which has no such hooks
        yield result
        return
    places, left = (
        0,
        0,
    )  # in which it would be kept, and which of them have not had it in this backward pass
    formed: torch.Tensor | None = None

    def pack(tensor: torch.Tensor) -> torch.Tensor | _Recomputed:
        same = (
            address != 0
            and tensor.data_ptr() == address
            and tensor.numel() == size
            and tensor.dtype == dtype
        )
        if same and tensor.is_contiguous():
            nonlocal places
            places += 1
            return _Recomputed(tensor.shape)
        for see in _watchers:
            see(tensor)
        return (
            tensor.detach()
        )  # an output would keep its own graph alive, whether or not there is a backward pass

    def unpack(kept: torch.Tensor | _Recomputed) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        nonlocal formed, left
        if formed is None:
            with (
                torch.enable_grad()
            ):  # as in the forward pass: on some devices other kernels serve without a graph
                formed, left = form(*inputs).detach(), places
        again, left = formed, left - 1
        if left == 0:
            formed = None
        return again.view(kept.shape)

    with saved_tensors_hooks(pack, unpack):
        yield result


@contextmanager
def watching(see: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call `see` with every tensor that autograd keeps of this block, once for each time that it is
    kept."""

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        see(tensor)
        return tensor.detach()

    _watchers.append(see)
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        _watchers.remove(see)
