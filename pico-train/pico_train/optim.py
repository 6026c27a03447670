"""Optimizer: construction, and its state as tensors keyed by parameter name (accelerate's own save pickles)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pico_contract.errors import DamagedError
from pydantic import Field
from torch import nn

from pico_train.config import Section
from pico_train.shards import gathered, shared_like

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """The optimizer; defaults are the Pico recipe."""

    name: Literal["adamw"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019)."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled, on every parameter, as the Pico recipe has it; 0 is off."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest global L2 norm of the gradient; null is off."""


def build_optimizer(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over `parameters`, in their order; fused where the device has it."""
    fused = all(p.device.type in ("cpu", "cuda", "mps") for p in parameters.values())
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """`<parameter name>.<entry>` -> tensor (exp_avg, exp_avg_sq, step) for every parameter that has been updated."""
    return {
        f"{name}.{entry}": value
        for name, parameter in parameters.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    *,
    drop_unknown: bool = False,
) -> None:
    """The inverse of `optimizer_tensors`; values are copied to each parameter's device and
    shared out as it is.

    `drop_unknown` ignores all state of parameters that no longer exist or have another shape (after a declared
    rebuild, where a method changed what trains); otherwise such state is an error.

    Raises:
        DamagedError: state of an unknown parameter, or of another shape than its parameter; names it.
    """
    unfit: dict[str, str] = {}
    for key, value in tensors.items():
        name = key.rpartition(".")[0]
        if name not in parameters or (value.dim() > 0 and value.shape != parameters[name].shape):
            unfit.setdefault(name, key)
    if unfit and not drop_unknown:
        raise DamagedError(f'the saved optimizer state "{next(iter(unfit.values()))}" fits no parameter of this model')
    for key, value in tensors.items():
        name, _, entry = key.rpartition(".")
        if name not in unfit:
            # Fused AdamW keeps its step counter on the parameter's device, as float32, like the moments.
            optimizer.state[parameters[name]][entry] = shared_like(parameters[name], value)


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> torch.Tensor:
    """Global L2 norm of the gradients, whole also where these are sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None])
    return gathered(norm, norm.device, everywhere=True)


def clip_gradients(parameters: Mapping[str, nn.Parameter], max_norm: float | None, norm: torch.Tensor) -> None:
    """Scale the gradients, whose global L2 norm is `norm`, in place to one of at most `max_norm` (None: leave them)."""
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(list(parameters.values()), max_norm, norm)
