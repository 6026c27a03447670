"""Never step on a non-finite loss or gradient, and explain the first one.

By default the host checks before each step. On CUDA, fused AdamW skips such a step by itself: the
host checks later and does not stall.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pico_contract import codec
from pico_contract.layout import FAILURE, FAILURE_BATCH
from torch import nn

from pico_train.checkpoint.state import TrainState
from pico_train.distributed import Runtime
from pico_train.model.decoder import Decoder
from pico_train.sharding import full_tensor, is_sharded
from pico_train.trainer.update import Update


@dataclass
class Examined:
    """The findings in a state whose loss or gradient is not finite, gathered by all processes."""

    decoder: Decoder
    bad_parameter: str | None
    bad_gradient: str | None
    gradient_norms: dict[str, float]


def examine(state: TrainState) -> Examined:
    """Look at every parameter and gradient of `state`; sharded ones are put together first."""
    gradients = {name: p.grad for name, p in state.parameters.items() if p.grad is not None}
    norms = {name: _whole(gradient).norm().item() for name, gradient in gradients.items()}
    return Examined(
        decoder=state.plain_decoder(),
        bad_parameter=_first_bad(state.model.named_parameters()),
        bad_gradient=_first_bad(gradients.items()),
        gradient_norms=norms,
    )


def _first_bad(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    for name, tensor in tensors:
        if not torch.isfinite(_whole(tensor)).all():
            return name
    return None


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return full_tensor(tensor, tensor.device, everywhere=True)


def write_failure(
    directory: Path,
    examined: Examined,
    step: int,
    loss: float,
    tokens: torch.Tensor | None,
    row_ids: np.ndarray | None,
) -> str:
    """Write the batch, all gradient norms and the first non-finite tensor; return its name."""
    directory.mkdir(parents=True, exist_ok=True)
    culprit = first_non_finite(examined, tokens)
    norms = {name: _finite_or_text(norm) for name, norm in examined.gradient_norms.items()}
    summary = {
        "step": step,
        "loss": _finite_or_text(loss),
        "first_non_finite": culprit,
        "gradient_norms": norms,
    }
    codec.write_text(directory / FAILURE, json.dumps(summary, indent=2, allow_nan=False))
    if tokens is not None and row_ids is not None:
        batch = {"rows": torch.from_numpy(row_ids), "tokens": tokens.int()}
        codec.write_tensors(directory / FAILURE_BATCH, batch)
    return culprit


def first_non_finite(examined: Examined, tokens: torch.Tensor | None) -> str:
    """Name the first parameter, else module output in forward order, else gradient, not finite."""
    if examined.bad_parameter is not None:
        return f"parameter {examined.bad_parameter}"
    module = None if tokens is None else _first_bad_output(examined.decoder, tokens)
    if module is not None:
        return f"the output of {module}"
    return (
        "the loss alone"
        if examined.bad_gradient is None
        else f"the gradient of {examined.bad_gradient}"
    )


@torch.no_grad()
def _first_bad_output(decoder: Decoder, tokens: torch.Tensor) -> str | None:
    bad: list[str] = []

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                bad.append(name)

        return decoder.get_submodule(name).register_forward_hook(hook)

    # A module with children only passes on what they compute.
    leaves = [name for name, module in decoder.named_modules() if not list(module.children())]
    handles = [watch(name) for name in leaves]
    device = next(decoder.parameters()).device
    # Row by row, because the rows of all processes may not fit into memory together.
    for row in tokens.to(device).split(1):
        decoder.hidden_states(row[:, :-1])
        if bad:
            break
    for handle in handles:
        handle.remove()
    return bad[0] if bad else None


def _finite_or_text(value: float) -> float | str:
    """Return `value` as JSON can hold it, which has no NaN."""
    return value if np.isfinite(value) else str(value)


_DEVICES_THAT_SKIP = ("cuda",)
"""Devices that run asynchronously and whose fused AdamW can skip a step by a tensor's value."""


def can_defer_check(state: TrainState, device: torch.device, step: int) -> bool:
    """Whether the host may check update `step` later, because the device skips it if it must.

    Fused AdamW leaves parameters and moments as they were if it finds the `found_inf` that
    `torch.amp.GradScaler` would set; on sharded parameters this is untried. A method that acts
    after an update would act on a skipped one.
    """
    fused = getattr(state.optimizer, "_step_supports_amp_scaling", False)
    whole = not any(is_sharded(parameter) for parameter in state.parameters.values())
    return (
        device.type in _DEVICES_THAT_SKIP
        and fused
        and whole
        and not state.method.acts_after(step)
    )


def skip_step_if_nonfinite(state: TrainState, update: Update, runtime: Runtime) -> None:
    """Make the device skip the step of `update` unless it is finite in every process.

    It also skips every step after a skipped one: the state stays that before the first of them.
    """
    assert update.losses is not None
    assert update.norm_on_device is not None
    finite = torch.isfinite(update.losses).all() & torch.isfinite(update.norm_on_device)
    skips = runtime.largest((~finite).float())
    # The largest of all flags so far: once one step is skipped, all that follow are.
    skipped = getattr(state.optimizer, "found_inf", None)
    found_inf = skips if skipped is None else torch.maximum(skipped, skips)
    state.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
