"""Parameters, gradients and optimizer state in shares: one of each tensor's rows for each process
(FSDP2).

A tensor in shares is a DTensor, whose shape is the whole tensor's. To put one together is a
collective: every process takes part, also where the main one alone wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeGuard

import torch
from pico_contract.errors import UserError
from torch import nn

from pico_train.model.decoder import Decoder

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Sharding = Literal["none", "full"]


def shard(
    model: Decoder, parameters: Mapping[str, nn.Parameter], device: torch.device, processes: int
) -> dict[str, nn.Parameter]:
    """Share `model` out among all processes, layer by layer, onto their devices; `parameters` as
    they are afterwards.

    Gradients come out of each backward pass as shares of the sum over the processes, which their
    averages would be only after a multiplication. They are exchanged after every micro-batch: to
    keep whole ones until the last would take the memory that sharding saves.

    Raises:
        UserError: a parameter that trains is not one of the model's, or was left whole; names it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    strange = [name for name, parameter in parameters.items() if id(parameter) not in names]
    if strange:
        raise UserError(
            f'train.sharding is full, but "{strange[0]}" is the method\'s own and no parameter of the model'
        )
    mesh = init_device_mesh(device.type, (processes,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    sharded = {
        name: model.get_parameter(names[id(parameter)]) for name, parameter in parameters.items()
    }
    whole = [name for name, parameter in sharded.items() if not is_sharded(parameter)]
    if whole:
        raise UserError(f'train.sharding is full, but "{whole[0]}" was left whole')
    return sharded


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether `tensor` is a DTensor; told by an attribute of it, since its module is slow to
    import, sets filters of warnings, and is there wherever there are shares."""
    return hasattr(tensor, "placements")


def full_tensor(
    tensor: torch.Tensor, device: torch.device | str, *, everywhere: bool = False
) -> torch.Tensor:
    """`tensor` as it is where it is not sharded; else the whole of it, on `device` in the main
    process (or `everywhere`) and on the meta device, shape and dtype alone, in the others."""
    if not is_sharded(tensor):
        return tensor
    whole = tensor.full_tensor().detach()
    return whole.to(device if everywhere or tensor.device_mesh.get_rank() == 0 else "meta")


def full_tensors(
    tensors: Mapping[str, torch.Tensor], *, everywhere: bool = False
) -> dict[str, torch.Tensor]:
    """`full_tensor` on CPU of each of `tensors`, one at a time."""
    return {
        name: full_tensor(tensor, "cpu", everywhere=everywhere) for name, tensor in tensors.items()
    }


def sharded_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of `tensor` (whole, the same in every process) on the device of `parameter`, and
    sharded as it is."""
    if not is_sharded(parameter) or tensor.dim() == 0:
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    share = distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    return (
        share.clone()
    )  # a share on the same device is a view of the whole, which it would keep in memory
