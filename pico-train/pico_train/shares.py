"""Tensors in shares, one for each process: a DTensor, whose shape is the whole tensor's.

To put one together is a collective: every process takes part, also where the main one alone wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_share(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether `tensor` is a DTensor; told by an attribute of it, since its module is slow to import, sets filters of
    warnings, and is there wherever there are shares."""
    return hasattr(tensor, "placements")


def gathered(tensor: torch.Tensor, device: torch.device | str, *, everywhere: bool = False) -> torch.Tensor:
    """`tensor` as it is where it is not sharded; else the whole of it, on `device` in the main process (or
    `everywhere`) and on the meta device, shape and dtype alone, in the others."""
    if not is_share(tensor):
        return tensor
    whole = tensor.full_tensor().detach()
    return whole.to(device if everywhere or tensor.device_mesh.get_rank() == 0 else "meta")


def all_gathered(tensors: Mapping[str, torch.Tensor], *, everywhere: bool = False) -> dict[str, torch.Tensor]:
    """`gathered` on CPU of each of `tensors`, one at a time."""
    return {name: gathered(tensor, "cpu", everywhere=everywhere) for name, tensor in tensors.items()}


def shared_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of `tensor` (whole, the same in every process) on the device of `parameter`, and sharded as it is."""
    if not is_share(parameter) or tensor.dim() == 0:
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    share = distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return share.clone()  # a share on the same device is a view of the whole, which it would keep in memory
