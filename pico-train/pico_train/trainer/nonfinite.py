"""What is not finite is never stepped, and what a run leaves behind when its loss or a gradient is
no longer finite.

The host looks before each step or, where the device itself leaves such an update out, later, so
that it need not wait for the device.
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
    """What a state says of itself when a loss or gradient is not finite; put together by all
    processes."""

    decoder: Decoder
    bad_parameter: str | None
    bad_gradient: str | None
    gradient_norms: dict[str, float]


def examine(state: TrainState) -> Examined:
    """Look at every parameter and gradient of `state`, whole also where they are sharded."""
    gradients = ((name, p.grad) for name, p in state.parameters.items() if p.grad is not None)
    norms = {name: _whole(gradient).norm().item() for name, gradient in gradients}
    return Examined(
        decoder=state.plain_decoder(),
        bad_parameter=_first_bad(state.model.named_parameters()),
        bad_gradient=_first_bad(
            (name, p.grad) for name, p in state.parameters.items() if p.grad is not None
        ),
        gradient_norms=norms,
    )


def _first_bad(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    return next(
        (name for name, tensor in tensors if not torch.isfinite(_whole(tensor)).all()), None
    )


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return full_tensor(tensor, tensor.device, everywhere=True)


def write_failure(
    directory: Path,
    found: Examined,
    step: int,
    loss: float,
    tokens: torch.Tensor | None,
    row_ids: np.ndarray | None,
) -> str:
    """Write the batch, the gradient norm of each parameter and the first non-finite module; returns
    that module."""
    directory.mkdir(parents=True, exist_ok=True)
    culprit = first_non_finite(found, tokens)
    norms = {name: _finite_or_text(norm) for name, norm in found.gradient_norms.items()}
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


def first_non_finite(found: Examined, tokens: torch.Tensor | None) -> str:
    """The first parameter that is not finite, else the first module (in forward order) whose output
    is not, else the first parameter whose gradient is not."""
    if found.bad_parameter is not None:
        return f"parameter {found.bad_parameter}"
    module = None if tokens is None else _first_bad_output(found.decoder, tokens)
    if module is not None:
        return f"the output of {module}"
    return (
        "the loss alone" if found.bad_gradient is None else f"the gradient of {found.bad_gradient}"
    )


@torch.no_grad()
def _first_bad_output(decoder: Decoder, tokens: torch.Tensor) -> str | None:
    found: list[str] = []

    def look(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return decoder.get_submodule(name).register_forward_hook(hook)

    leaves = [name for name, module in decoder.named_modules() if not list(module.children())]
    handles = [look(name) for name in leaves]
    device = next(decoder.parameters()).device
    for row in tokens.to(device).split(1):
        decoder.hidden_states(row[:, :-1])
        if found:
            break
    for handle in handles:
        handle.remove()
    return found[0] if found else None


def _finite_or_text(value: float) -> float | str:
    """JSON has no NaN."""
    return value if np.isfinite(value) else str(value)


_DEVICES_THAT_SKIP = ("cuda",)
"""Devices that work on while the host goes on, and whose fused AdamW can be told by a tensor of
theirs not to step."""


def can_defer_check(state: TrainState, device: torch.device, step: int) -> bool:
    """Whether the host may learn later that update `step` was not finite, the device having left
    parameters and moments as they were.

    Fused AdamW does so where it finds what `torch.amp.GradScaler` gives it; on shares that is
    untried. A method that acts after an update would act on one that was left out.
    """
    fused = getattr(state.optimizer, "_step_supports_amp_scaling", False)
    whole = not any(is_sharded(parameter) for parameter in state.parameters.values())
    return (
        device.type in _DEVICES_THAT_SKIP and fused and whole and not state.method.acts_after(step)
    )


def skip_step_if_nonfinite(state: TrainState, update: Update, runtime: Runtime) -> None:
    """Tell the device to leave out the step of `update`, unless it is finite in every process, and
    all that come after one that was left out: the state stays that before the first of them."""
    assert update.losses is not None
    assert update.norm_on_device is not None
    finite = torch.isfinite(update.losses).all() & torch.isfinite(update.norm_on_device)
    held = runtime.largest((~finite).float())
    before = getattr(state.optimizer, "found_inf", None)
    state.optimizer.found_inf = held if before is None else torch.maximum(before, held)  # type: ignore[attr-defined]
