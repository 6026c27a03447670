"""Parameters, gradients and optimizer state in shares: one of each tensor's rows for each process (FSDP2).

Which rows are whose, and how a tensor is put together and taken apart: `shares`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pico_contract.errors import UserError
from torch import nn

from pico_train.method.base import Method
from pico_train.model.decoder import Decoder
from pico_train.optim import OptimizerConfig
from pico_train.shares import is_share

Sharding = Literal["none", "full"]


def require_shardable(
    sharding: Sharding, method: Method, method_name: str, optimizer: OptimizerConfig, micro_batch: int | str | None
) -> None:
    """Refuse what cannot do with shares.

    Raises:
        UserError: the method or the optimizer, by name; a micro-batch that is to be found by trial, in which a process
            without memory would leave the others waiting for its share.
    """
    if sharding == "none":
        return
    if not method.shardable:
        raise UserError(f'train.sharding is full, which the method "{method_name}" does not support: set it to none')
    if not optimizer.supports_sharding:
        raise UserError(f'train.sharding is full, which optimizer.name "{optimizer.name}" does not support; adamw does')
    if micro_batch == "auto":
        raise UserError("train.sharding is full, for which train.micro_batch cannot be auto: set it to a number")


def require_processes(sharding: Sharding, processes: int) -> None:
    """Refuse to share the state among one process.

    Raises:
        UserError: that was asked for.
    """
    if sharding == "full" and processes == 1:
        raise UserError(
            "train.sharding is full, but this is the only process: start several by torchrun or accelerate launch, or"
            " set it to none"
        )


def shard(
    model: Decoder, parameters: Mapping[str, nn.Parameter], device: torch.device, processes: int
) -> dict[str, nn.Parameter]:
    """Share `model` out among all processes, layer by layer, onto their devices; `parameters` as they are afterwards.

    Gradients come out of each backward pass as shares of the sum over the processes, which their averages would be
    only after a multiplication. They are exchanged after every micro-batch: to keep whole ones until the last would
    take the memory that sharding saves.

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
    sharded = {name: model.get_parameter(names[id(parameter)]) for name, parameter in parameters.items()}
    whole = [name for name, parameter in sharded.items() if not is_share(parameter)]
    if whole:
        raise UserError(f'train.sharding is full, but "{whole[0]}" was left whole')
    return sharded
