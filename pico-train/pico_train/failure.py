"""What a run leaves behind when its loss or a gradient is no longer finite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from pico_contract import codec
from pico_contract.layout import FAILURE, FAILURE_BATCH
from torch import nn

from pico_train.state import TrainState


class NonFiniteError(Exception):
    """The loss or a gradient became NaN or infinite; raised before the optimizer steps. Exit code 1."""


def write_failure(
    directory: Path,
    state: TrainState,
    step: int,
    loss: float,
    tokens: torch.Tensor | None,
    row_ids: np.ndarray | None,
) -> str:
    """Write the batch, the gradient norm of each parameter and the first non-finite module; returns that module."""
    directory.mkdir(parents=True, exist_ok=True)
    culprit = first_non_finite(state, tokens)
    norms = {name: _finite_or_text(p.grad.norm().item()) for name, p in state.parameters.items() if p.grad is not None}
    summary = {"step": step, "loss": _finite_or_text(loss), "first_non_finite": culprit, "gradient_norms": norms}
    codec.write_text(directory / FAILURE, json.dumps(summary, indent=2, allow_nan=False))
    if tokens is not None and row_ids is not None:
        batch = {"rows": torch.from_numpy(row_ids), "tokens": tokens.int()}
        codec.write_tensors(directory / FAILURE_BATCH, batch)
    return culprit


def first_non_finite(state: TrainState, tokens: torch.Tensor | None) -> str:
    """The first parameter that is not finite, else the first module (in forward order) whose output is not, else the
    first parameter whose gradient is not."""
    for name, parameter in state.model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter {name}"
    if tokens is not None:
        module = _first_bad_output(state, tokens)
        if module is not None:
            return f"the output of {module}"
    for name, parameter in state.parameters.items():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name}"
    return "the loss alone"


@torch.no_grad()
def _first_bad_output(state: TrainState, tokens: torch.Tensor) -> str | None:
    decoder, found = state.plain_decoder(), []

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
