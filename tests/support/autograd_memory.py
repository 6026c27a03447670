"""What autograd keeps between the forward and the backward pass, counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pico_train.model.recompute import watching
from torch import nn


def kept_bytes(model: nn.Module, compute: Callable[[], torch.Tensor]) -> int:
    """Bytes of the distinct tensors, parameters left out, that autograd keeps of `compute()`."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def count(tensor: torch.Tensor) -> None:
        if tensor.untyped_storage().data_ptr() not in parameters:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

    with watching(count):
        result = compute()
    assert result.requires_grad
    return sum(storage.nbytes() for storage in seen.values())
