"""What autograd keeps between the forward and the backward pass, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pico_train.model import lean
from torch import nn
from torch.autograd.graph import saved_tensors_hooks


def kept_bytes(model: nn.Module, compute: Callable[[], torch.Tensor]) -> int:
    """Bytes of the distinct tensors, parameters left out, that autograd keeps of `compute()`.

    Hooks see nothing of what is saved under hooks further inside, so those of `lean` are counted by themselves.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def count(kept: Any) -> Any:
        if isinstance(kept, torch.Tensor) and kept.untyped_storage().data_ptr() not in parameters:
            seen[kept.untyped_storage().data_ptr()] = kept.untyped_storage()
        return kept

    def counting(pack: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> saved_tensors_hooks:
        return saved_tensors_hooks(lambda tensor: count(pack(tensor)), unpack)

    with pytest.MonkeyPatch.context() as patch, saved_tensors_hooks(count, lambda tensor: tensor):
        patch.setattr(lean, "saved_tensors_hooks", counting)
        result = compute()
    assert result.requires_grad
    return sum(storage.nbytes() for storage in seen.values())
