"""Shard parameters, gradients and optimizer state: each process has some rows of every tensor.

The implementation is torch's FSDP2. A sharded tensor is a DTensor, whose shape is that of the whole
tensor. Putting it together is a collective operation: every process must take part, even if only
the main one uses the result.
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
    """Shard `model` over all processes, layer by layer, onto their devices.

    Returns the sharded `parameters`. Each backward pass leaves shards of the sum of gradients over
    the processes. Gradients are exchanged after every micro-batch, since keeping whole ones until
    the last would take the memory that sharding saves.

    Raises:
        UserError: a trained parameter is not one of the model's, or was left whole; names it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in parameters.items():
        if id(parameter) not in names:
            raise UserError(
                f'train.sharding is full, but "{name}" is the method\'s own and not a parameter of the model'
            )
    # One dimension shards over all processes; a second one would replicate the shards.
    mesh = init_device_mesh(device.type, (processes,))
    # Layer by layer, so that a pass gathers one layer at a time.
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # FSDP averages by default; the loop divides by the number of tokens instead.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    # `fully_shard` has replaced the parameters of the model, which are found again by name.
    sharded = {}
    for name, parameter in parameters.items():
        sharded[name] = model.get_parameter(names[id(parameter)])
        if not is_sharded(sharded[name]):
            raise UserError(f'train.sharding is full, but "{name}" was left whole')
    return sharded


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Tell whether `tensor` is a DTensor."""
    # Importing DTensor to ask for its class is slow and sets filters of warnings.
    return hasattr(tensor, "placements")


def full_tensor(
    tensor: torch.Tensor, device: torch.device | str, *, everywhere: bool = False
) -> torch.Tensor:
    """Put `tensor` together if it is sharded; otherwise return it unchanged.

    The whole tensor is on `device` in the main process, or `everywhere`. The other processes get it
    on the meta device: shape and dtype alone.
    """
    if not is_sharded(tensor):
        return tensor
    whole = tensor.full_tensor().detach()
    is_main = tensor.device_mesh.get_rank() == 0
    return whole.to(device if everywhere or is_main else "meta")


def full_tensors(
    tensors: Mapping[str, torch.Tensor], *, everywhere: bool = False
) -> dict[str, torch.Tensor]:
    """Put each of `tensors` together on CPU, one at a time; see `full_tensor`."""
    return {
        name: full_tensor(tensor, "cpu", everywhere=everywhere)
        for name, tensor in tensors.items()
    }


def sharded_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Copy `tensor` to the device of `parameter`, sharded in the same way.

    `tensor` is whole, and the same in every process.
    """
    if not is_sharded(parameter) or tensor.dim() == 0:
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    sharded = distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    # On the same device a shard is a view, which would keep the whole tensor in memory.
    return sharded.clone()
