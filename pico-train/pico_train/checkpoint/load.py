"""Read a checkpoint back: the newest intact one to continue from, or one that a command names."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from pico_contract import codec
from pico_contract.errors import DamagedError, UserError, in_one_line
from pico_contract.layout import (
    MANIFEST,
    METHOD_TENSORS,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    OPTIMIZER,
    SCALARS,
    RunLayout,
)
from pico_contract.schema import CheckpointManifest, StateManifest

from pico_train.checkpoint.model_folder import check_tensors, load_model, read_geometry
from pico_train.checkpoint.state import Counters, SavedState
from pico_train.model.decoder import Decoder, DecoderConfig


def load_checkpoint(
    layout: RunLayout, step: int, run: str | None = None, config: DecoderConfig | None = None
) -> SavedState:
    """Read the state saved at `step`; the caller has verified that it is intact (`newest_intact`).

    Raises:
        DamagedError: its tensors are not what its config.json implies, or that is not the geometry
            `config`; scalars.json is not what a checkpoint holds; or `run` is given, and the
            checkpoint was copied here from a run of another name.
    """
    directory, state = layout.checkpoint(step), layout.state(step)
    owner = codec.read_manifest(directory / MANIFEST, CheckpointManifest).run
    if run not in (None, owner):
        raise DamagedError(
            f'{directory} is a checkpoint of the run "{owner}", not of "{run}": move it away'
        )
    geometry = read_geometry(directory)
    if config not in (None, geometry):
        raise DamagedError(
            f"{directory / MODEL_CONFIG} has another geometry than the run: {geometry}"
        )
    check_tensors(directory, geometry)
    counters, method, stepped = _read_scalars(state / SCALARS)
    return SavedState(
        weights=codec.read_tensors(directory / MODEL_WEIGHTS),
        optimizer=codec.read_tensors(state / OPTIMIZER),
        method_tensors=codec.read_tensors(state / METHOD_TENSORS),
        method_scalars=method,
        counters=counters,
        stepped=stepped,
        directory=state,
    )


def _read_scalars(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[str] | None]:
    """Read counters, scalars of the method, and the parameters that the optimizer has stepped
    (None: not recorded)."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        counters, method, stepped = raw["counters"], raw["method"], raw.get("stepped")
        Counters(**counters)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{path} does not hold the counters of a checkpoint ({in_one_line(error)})"
        ) from None
    wrong = [
        field.name
        for field in fields(Counters)
        if str(field.type) != type(counters.get(field.name)).__name__
    ]
    if wrong:
        raise DamagedError(f"{path}: counters.{wrong[0]} is missing or of a wrong type")
    if not isinstance(method, dict):
        raise DamagedError(f'{path}: "method" should be an object')
    if stepped is not None and not (
        isinstance(stepped, list) and all(isinstance(name, str) for name in stepped)
    ):
        raise DamagedError(f'{path}: "stepped" should be a list of names')
    return counters, method, stepped


def newest_intact(layout: RunLayout) -> tuple[int | None, list[str]]:
    """(the newest step that a run can continue from, or None; one sentence for each newer one that
    is damaged).

    Every sha256 is compared, newest first, until one checkpoint passes. Those whose state/ was
    removed are models only.
    """
    damaged: list[str] = []
    for step in reversed(codec.listed_steps(layout.checkpoints)):
        if not layout.state(step).exists():
            continue
        problem = codec.verify_directory(
            layout.checkpoint(step), CheckpointManifest, hashes=True
        ) or codec.verify_directory(layout.state(step), StateManifest, hashes=True)
        if problem is None:
            return step, damaged
        damaged.append(f"checkpoint {step} is damaged and skipped: {problem}")
    return None, damaged


def run_layout(run: Path) -> RunLayout:
    """Paths of the run in `run`; UserError where there is none."""
    layout = RunLayout(run)
    if not layout.manifest.is_file():
        raise UserError(f"{run} is not a run directory (it has no {layout.manifest.name})")
    return layout


def intact_checkpoint(run: Path, step: int | None) -> tuple[RunLayout, int]:
    """(layout, step) of a checkpoint of `run` whose every sha256 is right, the newest where `step`
    is None.

    A damaged checkpoint is refused, also as the newest: another step is taken only where it is
    asked for.

    Raises:
        UserError: `run` is no run, or has no checkpoint of that step; those that it has are named.
        DamagedError: that checkpoint is damaged; the file and the intact steps are named.
    """
    layout = run_layout(run)
    steps = codec.listed_steps(layout.checkpoints)
    chosen = step if step is not None else max(steps, default=None)
    if chosen is None or chosen not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise UserError(
            f"{run} has no checkpoint{'' if step is None else f' {step}'}; it has: {known}"
        )
    problem = codec.verify_directory(layout.checkpoint(chosen), CheckpointManifest, hashes=True)
    if problem is not None:
        others = [
            s for s in codec.intact_steps(layout.checkpoints, CheckpointManifest) if s != chosen
        ]
        raise DamagedError(
            f"{problem}; other intact steps: {', '.join(map(str, others)) or 'none'}"
        )
    return layout, chosen


def open_checkpoint(run: Path, step: int | None) -> tuple[RunLayout, int, Decoder]:
    """(layout, step, decoder in evaluation mode) of a checkpoint of `run`; errors as
    `intact_checkpoint`."""
    layout, chosen = intact_checkpoint(run, step)
    directory = layout.checkpoint(chosen)
    return layout, chosen, load_model(directory)
