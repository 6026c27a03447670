"""Activations that are formed again in the backward pass instead of kept, where that costs next to no time.

A linear map keeps its input for the gradient of its weight. Where that input is an elementwise function of tensors that
are kept anyway (a norm of the residual stream, the product of SwiGLU), it need not be kept as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks


class _Again:
    """Takes the place of a tensor that was not kept: its shape, by which views of it differ."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape


@contextmanager
def formed_again(
    result: torch.Tensor, form: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Yields `result`; what is computed in this block does not keep it, but calls `form(*inputs)` when it needs it.

    `result` is contiguous and what `form(*inputs)` gives, to the last bit; nothing changes it or `inputs` in place.
    Gradients are the same to the last bit.
    """
    place, size, dtype = result.data_ptr(), result.numel(), result.dtype

    def pack(tensor: torch.Tensor) -> torch.Tensor | _Again:
        whole = tensor.data_ptr() == place and tensor.numel() == size and tensor.dtype == dtype
        return _Again(tensor.shape) if whole and tensor.is_contiguous() else tensor

    def unpack(kept: torch.Tensor | _Again) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        with torch.no_grad():  # autograd joins it to what `result` came from
            return form(*inputs).view(kept.shape)

    with saved_tensors_hooks(pack, unpack):
        yield result


def lean_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of equal shapes, keeping these two alone: as written, silu(gate) is kept too. Differentiable
    once, to the same bits."""
    return _SwiGLU.apply(gate, up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)
