"""Recomputation in the backward pass of activations that cost next to no time.

A matrix product keeps its input for the gradient of its weight. If that input is an elementwise
function of tensors that are kept anyway (the norm of the residual stream, the activation between
the products of the MLP), it need not be kept as well: the backward pass computes it again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

_watchers: list[Callable[[torch.Tensor], None]] = []


class _Output:
    """One output of a module, recomputed once a backward pass by `forward(*inputs)`.

    It exists in the backward pass from its first use there to its last. The module's output itself
    is known by a weak reference: its memory is free as soon as the forward pass has used it.
    """

    def __init__(
        self,
        result: torch.Tensor,
        forward: Callable[..., torch.Tensor],
        inputs: tuple[torch.Tensor, ...],
    ) -> None:
        self._result = weakref.ref(result)
        self._forward, self._inputs = forward, inputs
        self._uses = self._uses_left = 0
        self._recomputed: torch.Tensor | None = None

    def count_use(self) -> None:
        """Note that autograd would keep this output in one more place."""
        self._uses += 1

    def is_viewed_by(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor`, which begins at the same address, is all of this output."""
        result = self._result()
        if result is None:  # freed, and its address serves another tensor
            return False
        return (
            tensor.numel() == result.numel()
            and tensor.dtype == result.dtype
            and tensor.is_contiguous()
        )

    def use(self) -> torch.Tensor:
        """Return the output to one place of the backward pass, recomputed if it is the first."""
        output = self._recomputed
        if output is None:
            with (
                torch.enable_grad()
            ):  # as in the forward pass: without, other kernels may serve
                output = self._forward(*self._inputs).detach()
            self._recomputed, self._uses_left = output, self._uses
        self._uses_left -= 1
        if self._uses_left == 0:
            self._recomputed = None
        return output


class _Recomputed:
    """The stand-in that autograd keeps for a view of an output."""

    def __init__(self, output: _Output, shape: torch.Size) -> None:
        self.output, self.shape = output, shape


def _unpack(kept: torch.Tensor | _Recomputed) -> torch.Tensor:
    return kept if isinstance(kept, torch.Tensor) else kept.output.use().view(kept.shape)


@contextmanager
def recompute_in_backward(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Recompute in the backward pass the outputs that `modules` compute in this block.

    Autograd keeps none of them. Gradients are the same to the last bit. `modules` are pure
    functions of their inputs. Those with hooks are left out, since a hook may have changed inputs
    or output. Nothing that the block computes with may be changed in place before the backward
    pass, since autograd does not notice; and hooks on saved tensors that are set around the block
    see nothing of it.
    """
    outputs: dict[int, _Output] = {}

    def note_output(module: nn.Module, inputs: tuple[Any, ...], result: torch.Tensor) -> None:
        if address(result) != 0 and result.is_contiguous():
            outputs[address(result)] = _Output(result, module.forward, inputs)

    def pack(tensor: torch.Tensor) -> torch.Tensor | _Recomputed:
        output = outputs.get(tensor.data_ptr())
        if output and output.is_viewed_by(tensor):
            output.count_use()
            return _Recomputed(output, tensor.shape)
        for see in _watchers:
            see(tensor)
        # Detached: an operation's output would keep its graph alive, and with it itself.
        return tensor.detach()

    with ExitStack() as stack:
        for module in modules:
            if not (module._forward_pre_hooks or module._forward_hooks):
                stack.enter_context(module.register_forward_hook(note_output))
        stack.enter_context(saved_tensors_hooks(pack, _unpack))
        # Autograd keeps `pack` along with each tensor: it must not lead to the graph built later.
        stack.callback(outputs.clear)
        yield


def address(tensor: torch.Tensor) -> int:
    """Return where `tensor` begins in memory; 0 if nowhere (meta device, within torch.func)."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


@contextmanager
def watching(see: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call `see` with every tensor that autograd keeps of this block, each time it is kept."""

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        see(tensor)
        return tensor.detach()

    _watchers.append(see)
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        _watchers.remove(see)
