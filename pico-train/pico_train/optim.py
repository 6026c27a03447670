"""Build optimizers, save and load their state, and clip gradients.

The state is tensors keyed by parameter name: accelerate and torch would save pickles.
"""

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
"""Parameters with separate settings, as in `torch.optim`."""

_PROJECTIONS = {
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
}
"""The seven matrices of a layer, which Muon trains."""
_STATE_ENTRIES = ({"exp_avg", "exp_avg_sq", "step"}, {"momentum_buffer"})
"""Entries of a parameter's state: all those of AdamW, or that of Muon."""


class MuonConfig(Section):
    """Muon for the projections of the layers (Jordan et al. 2024).

    See https://kellerjordan.github.io/posts/muon. M <- momentum M + (1 - momentum) G is the mean of
    the gradients G of a matrix of shape (A, B), and the update is lr s(A, B) O. O brings the
    singular values of M near 1, or with Nesterov those of (1 - momentum) G + momentum M. It is
    computed in bfloat16 by `ns_steps` of the quintic Newton-Schulz iteration
    X -> 3.4445 X - 4.7750 (X X^T) X + 2.0315 (X X^T)^2 X, from X = M / |M|_F. `scaling` chooses s.
    """

    lr: float | None = Field(None, gt=0)
    """Peak learning rate of the projections; null is `optimizer.lr`, which suits the scaling
    "match_rms_adamw"."""
    momentum: Decay = 0.95
    """Decay of the mean gradient."""
    nesterov: bool = True
    """Whether the update uses the current gradient once more (Nesterov momentum)."""
    ns_steps: int = Field(5, ge=1, lt=100)
    """Iterations of Newton-Schulz."""
    scaling: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """s = 0.2 sqrt(max(A, B)), which makes updates as large as AdamW's (Liu et al. 2025, "Muon is
    Scalable for LLM Training", section 2.2), or Jordan's s = sqrt(max(1, A / B)), for which a rate
    of 0.02 is usual."""


class OptimizerConfig(Section):
    """The optimizer; defaults are the Pico recipe."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019), or Muon for the projections of the layers and AdamW for the
    rest: embeddings, head, norms, and parameters that a method adds."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Constant added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of every parameter that `no_decay` does not exempt; 0 is off."""
    no_decay: tuple[str, ...] = ()
    """Glob patterns, as in `snapshot.modules`, of modules whose weights do not decay. With
    ["*norm*"] only matrices decay, embeddings among them (GPT-3, nanoGPT). The recipe has none."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest global L2 norm of the gradient; null is off."""
    muon: MuonConfig = MuonConfig()
    """Settings of Muon alone; `weight_decay`, `no_decay` and `grad_clip` apply to both."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerConfig:
        if self.name != "muon" and self.muon != MuonConfig():
            raise ValueError(
                f'the section "muon" is set, but name is "{self.name}": set name to "muon", or drop it'
            )
        return self

    @property
    def supports_sharding(self) -> bool:
        """Whether processes may step shards of parameters; Muon's iteration needs whole
        matrices."""
        return self.name != "muon"


def build_optimizer(
    config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """Build the optimizer of `parameters`, which keeps their order.

    Each group knows its `peak_lr`, for `set_learning_rates`.
    """
    if config.name == "adamw":
        return _adamw(config, parameters)
    projections: dict[str, nn.Parameter] = {}
    others: dict[str, nn.Parameter] = {}
    for name, parameter in parameters.items():
        group = projections if _is_projection(name, parameter) else others
        group[name] = parameter
    optimizers = []
    if projections:
        optimizers.append(_muon(config, projections))
    if others:
        optimizers.append(_adamw(config, others))
    return _Joint(optimizers)


def check_no_decay(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> None:
    """Check at the beginning of a run that every pattern of `no_decay` fits a parameter.

    Later there may be none left, since a method may change what trains.

    Raises:
        UserError: a pattern fits nothing.
    """
    names.match(config.no_decay, [_module(name) for name in parameters])


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor`, the schedule's, times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class _Joint(torch.optim.Optimizer):
    """Several optimizers that look like one: they share their groups, their state and each step."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        groups = [group for part in parts for group in part.param_groups]
        super().__init__(groups, {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        # Each part steps its own groups, whose parameters are disjoint.
        for part in self.parts:
            part.step()
        return None


def _adamw(
    config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    # On CUDA the fused kernel can also skip a step that is not finite (`trainer.nonfinite`).
    fused = all(p.device.type in ("cpu", "cuda", "mps") for p in parameters.values())
    groups = _groups(config, parameters, config.lr)
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused
    )


def _muon(
    config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
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
    """Split `parameters` into those that decay and those that do not, each in order."""
    decaying, exempt = [], []
    for name, parameter in parameters.items():
        module = _module(name)
        if any(names.fits(pattern, module) for pattern in config.no_decay):
            exempt.append(parameter)
        else:
            decaying.append(parameter)
    groups = []
    if decaying:
        groups.append({"params": decaying, "weight_decay": config.weight_decay, "peak_lr": lr})
    if exempt:
        groups.append({"params": exempt, "weight_decay": 0.0, "peak_lr": lr})
    return groups


def _is_projection(name: str, parameter: nn.Parameter) -> bool:
    """Tell the matrices of a layer from parameters that a method puts beside or inside them."""
    module = names.parse(_module(name))
    return (
        module.layer is not None and module.component in _PROJECTIONS and parameter.dim() == 2
    )


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return the state of every parameter that has been updated.

    Keys are `<parameter name>.<entry>`, such as `lm_head.weight.exp_avg`.
    """
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
    """Load what `optimizer_tensors` returned, onto each parameter's device and sharded like it.

    `drop_unknown` ignores all state of parameters that no longer exist or have another shape (after
    a declared rebuild, where a method changed what trains). Otherwise such state is an error.

    Raises:
        DamagedError: there is state of an unknown parameter, of another shape than its parameter,
            or with other entries than an optimizer keeps; names it.
    """
    unknown: set[str] = set()
    entries: dict[str, set[str]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition(".")
        entries.setdefault(name, set()).add(entry)
        if name in parameters and _fits(entry, value, parameters[name]):
            continue
        if not drop_unknown:
            raise DamagedError(
                f'the saved optimizer state "{key}" fits no parameter of this model'
            )
        unknown.add(name)
    # With half of the entries of a parameter, the next step would fail.
    for name in sorted(entries.keys() - unknown):
        _check_entries(name, entries[name])
    for key, value in tensors.items():
        name, _, entry = key.rpartition(".")
        if name not in unknown:
            # Fused AdamW keeps its step counter on the parameter's device, as float32, like the
            # moments.
            optimizer.state[parameters[name]][entry] = sharded_like(parameters[name], value)


def _fits(entry: str, value: torch.Tensor, parameter: nn.Parameter) -> bool:
    shape = torch.Size() if entry == "step" else parameter.shape
    return value.shape == shape and value.is_floating_point()


def _check_entries(name: str, entries: set[str]) -> None:
    if entries not in _STATE_ENTRIES:
        wanted = " or ".join(", ".join(sorted(known)) for known in _STATE_ENTRIES)
        given = ", ".join(sorted(entries))
        raise DamagedError(f'the saved optimizer state of "{name}" is {given}, not {wanted}')


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> torch.Tensor:
    """Return the global L2 norm of the gradients, on the device; it is whole if they are
    sharded."""
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return full_tensor(norm, norm.device, everywhere=True)


def clip_gradients(
    parameters: Mapping[str, nn.Parameter], max_norm: float | None, norm: torch.Tensor
) -> None:
    """Scale gradients whose global L2 norm is `norm` to at most `max_norm` (None: do nothing)."""
    # The norm is given, since the loop needs it for its check and its log as well.
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(list(parameters.values()), max_norm, norm)
