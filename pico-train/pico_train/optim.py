"""Optimizers: construction, and their state as tensors keyed by parameter name (accelerate's own
save pickles)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pico_contract import names
from pico_contract.errors import DamagedError
from pydantic import Field, model_validator
from torch import nn

from pico_train.config import Section
from pico_train.sharding import full_tensor, sharded_like

Decay = Annotated[float, Field(ge=0, lt=1)]
Group = dict[str, Any]
"""Parameters with settings of their own, as `torch.optim` has it."""

_PROJECTIONS = {f"self_attn.{x}_proj" for x in "qkvo"} | {
    f"mlp.{x}_proj" for x in ("gate", "up", "down")
}


class MuonConfig(Section):
    """Muon, for the projections of the layers (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon).

    M = momentum M + (1 - momentum) G, G the gradient; the step is lr s(A, B) O, where O brings the
    singular values of M (with Nesterov of (1 - momentum) G + momentum M) near 1, in bfloat16, by
    `ns_steps` of the quintic Newton-Schulz iteration X -> 3.4445 X - 4.7750 (X X^T) X + 2.0315 (X
    X^T)^2 X from X = M / |M|_F, and s scales a matrix (A, B).
    """

    lr: float | None = Field(None, gt=0)
    """Peak learning rate of the projections; null is `optimizer.lr`, which suits the scaling
    "match_rms_adamw"."""
    momentum: Decay = 0.95
    """Decay of the mean gradient."""
    nesterov: bool = True
    """Whether the step looks ahead, by the gradient once more."""
    ns_steps: int = Field(5, ge=1, lt=100)
    """Iterations of Newton-Schulz."""
    scaling: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """s = 0.2 sqrt(max(A, B)), updates as large as AdamW's (Liu et al. 2025, "Muon is Scalable for
    LLM Training", section 2.2), or Jordan's s = sqrt(max(1, A / B)), whose usual rate is 0.02."""


class OptimizerConfig(Section):
    """The optimizer; defaults are the Pico recipe."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019), or Muon for the projections of the layers and AdamW for the
    rest: embeddings, head, norms, and what a method adds."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled, on every parameter that `no_decay` leaves, as the Pico recipe has it; 0 is off."""
    no_decay: tuple[str, ...] = ()
    """Glob patterns, as in `snapshot.modules`, of what does not decay: ["*norm*"] decays matrices
    alone, embeddings among them (GPT-3, nanoGPT). The recipe has none."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest global L2 norm of the gradient; null is off."""
    muon: MuonConfig = MuonConfig()
    """What Muon has of its own; `weight_decay`, `no_decay` and `grad_clip` are for both."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerConfig:
        if self.name != "muon" and self.muon != MuonConfig():
            raise ValueError(
                f'the section "muon" is set, but name is "{self.name}": set name to "muon", or drop it'
            )
        return self

    @property
    def supports_sharding(self) -> bool:
        """Whether each process may step its own part of every parameter: Muon's iteration needs
        whole matrices."""
        return self.name != "muon"


def build_optimizer(
    config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer of `parameters`, in their order; each group knows its `peak_lr`, for
    `set_learning_rates`."""
    if config.name == "adamw":
        return _adamw(config, parameters)
    projections = {
        name: parameter for name, parameter in parameters.items() if _is_projection(name, parameter)
    }
    rest = {name: parameter for name, parameter in parameters.items() if name not in projections}
    parts = [build(config, some) for build, some in ((_muon, projections), (_adamw, rest)) if some]
    return _Joint(parts)


def check_no_decay(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> None:
    """UserError where a pattern of `no_decay` fits none of `parameters`; for the beginning of a
    run, since what trains may change later."""
    names.match(config.no_decay, [_module(name) for name in parameters])


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its peak learning rate times `factor`, that of the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class _Joint(torch.optim.Optimizer):
    """Several optimizers that look like one: the same groups, one state, one step."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for part in self.parts:
            part.step()
        return None


def _adamw(
    config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """AdamW; fused where the device has it."""
    fused = all(p.device.type in ("cpu", "cuda", "mps") for p in parameters.values())
    groups = _groups(config, parameters, config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def _muon(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    muon = config.muon
    lr = muon.lr or config.lr
    return torch.optim.Muon(
        _groups(config, parameters, lr),
        lr=lr,
        momentum=muon.momentum,
        nesterov=muon.nesterov,
        ns_steps=muon.ns_steps,
        adjust_lr_fn=muon.scaling,
    )


def _groups(
    config: OptimizerConfig, parameters: Mapping[str, nn.Parameter], lr: float
) -> list[Group]:
    """What decays and what does not, each in the order of `parameters`."""
    spared = {
        name for name in parameters if any(names.fits(p, _module(name)) for p in config.no_decay)
    }
    decaying = [parameter for name, parameter in parameters.items() if name not in spared]
    others = [parameter for name, parameter in parameters.items() if name in spared]
    shares = ((decaying, config.weight_decay), (others, 0.0))
    return [
        {"params": some, "weight_decay": decay, "peak_lr": lr} for some, decay in shares if some
    ]


def _is_projection(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is one of the seven matrices of a layer, and nothing that a method has put beside
    or inside one."""
    module = names.parse(_module(name))
    return module.layer is not None and module.component in _PROJECTIONS and parameter.dim() == 2


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """`<parameter name>.<entry>` -> tensor (exp_avg, exp_avg_sq, step) for every parameter that has
    been updated."""
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
    """The inverse of `optimizer_tensors`; values are copied to each parameter's device, and shared
    out as it is.

    `drop_unknown` ignores all state of parameters that no longer exist or have another shape (after
    a declared rebuild, where a method changed what trains); otherwise such state is an error.

    Raises:
        DamagedError: state of an unknown parameter, or of another shape than its parameter; names
            it.
    """
    unfit: dict[str, str] = {}
    for key, value in tensors.items():
        name = key.rpartition(".")[0]
        if name not in parameters or not _fits(key, value, parameters[name]):
            unfit.setdefault(name, key)
    if unfit and not drop_unknown:
        raise DamagedError(
            f'the saved optimizer state "{next(iter(unfit.values()))}" fits no parameter of this model'
        )
    for name in sorted({key.rpartition(".")[0] for key in tensors} - unfit.keys()):
        entries = {key.rpartition(".")[2] for key in tensors if key.rpartition(".")[0] == name}
        if entries not in _ENTRIES:
            wanted = " or ".join(", ".join(sorted(some)) for some in _ENTRIES)
            raise DamagedError(
                f'the saved optimizer state of "{name}" is {", ".join(sorted(entries))}, not {wanted}'
            )
    for key, value in tensors.items():
        name, _, entry = key.rpartition(".")
        if name not in unfit:
            # Fused AdamW keeps its step counter on the parameter's device, as float32, like the
            # moments.
            optimizer.state[parameters[name]][entry] = sharded_like(parameters[name], value)


_ENTRIES = ({"exp_avg", "exp_avg_sq", "step"}, {"momentum_buffer"})
"""What AdamW and Muon keep of a parameter, whole or not at all."""


def _fits(key: str, value: torch.Tensor, parameter: nn.Parameter) -> bool:
    shape = torch.Size() if key.endswith(".step") else parameter.shape
    return value.shape == shape and value.is_floating_point()


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> torch.Tensor:
    """Global L2 norm of the gradients, whole also where these are sharded."""
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in parameters.values() if p.grad is not None]
    )
    return full_tensor(norm, norm.device, everywhere=True)


def clip_gradients(
    parameters: Mapping[str, nn.Parameter], max_norm: float | None, norm: torch.Tensor
) -> None:
    """Scale the gradients, whose global L2 norm is `norm`, in place to one of at most `max_norm`
    (None: leave them)."""
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(list(parameters.values()), max_norm, norm)
