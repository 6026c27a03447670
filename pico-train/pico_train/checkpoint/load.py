"""Load checkpoints: the newest intact one to continue from, or one that a command names."""

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
    """Read the state saved at `step`, whose files the caller has verified (`newest_intact`).

    Raises:
        DamagedError: its tensors are not those that its config.json implies; its geometry is not
            `config`; scalars.json does not hold counters; or `run` is given, and the checkpoint was
            copied here from a run of another name.
    """
    directory, state = layout.checkpoint(step), layout.state(step)
    # Step numbers are alike in all runs, so that a copied checkpoint would go unnoticed.
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
    """Read the counters, the method's scalars, and the stepped parameters (None: not recorded)."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        counters, method, stepped = raw["counters"], raw["method"], raw.get("stepped")
        # Raises for unknown and missing counters; their types are compared below.
        Counters(**counters)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{path} does not hold the counters of a checkpoint ({in_one_line(error)})"
        ) from None
    for field in fields(Counters):
        # Annotations are postponed in state.py, so a field's type is its name as text.
        if str(field.type) != type(counters.get(field.name)).__name__:
            raise DamagedError(f"{path}: counters.{field.name} is missing or of a wrong type")
    if not isinstance(method, dict):
        raise DamagedError(f'{path}: "method" should be an object')
    if stepped is not None and not _is_list_of_names(stepped):
        raise DamagedError(f'{path}: "stepped" should be a list of names')
    return counters, method, stepped


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def newest_intact(layout: RunLayout) -> tuple[int | None, list[str]]:
    """Find the newest step that a run can continue from, or None.

    Every sha256 is compared, newest first, until one checkpoint passes. The second value has one
    sentence for each newer checkpoint that is damaged.
    """
    damaged: list[str] = []
    for step in reversed(codec.listed_steps(layout.checkpoints)):
        # A model only: its state was removed to save space.
        if not layout.state(step).exists():
            continue
        problem = codec.verify_directory(
            layout.checkpoint(step), CheckpointManifest, hashes=True
        )
        if problem is None:
            problem = codec.verify_directory(layout.state(step), StateManifest, hashes=True)
        if problem is None:
            return step, damaged
        damaged.append(f"checkpoint {step} is damaged and skipped: {problem}")
    return None, damaged


def run_layout(run: Path) -> RunLayout:
    """Return the paths of the run in `run`; UserError if it is not a run."""
    layout = RunLayout(run)
    if not layout.manifest.is_file():
        raise UserError(f"{run} is not a run directory (it has no {layout.manifest.name})")
    return layout


def intact_checkpoint(run: Path, step: int | None) -> tuple[RunLayout, int]:
    """Verify every sha256 of the checkpoint of `run` at `step`, or of the newest if it is None.

    Returns (layout, step). A damaged newest checkpoint is an error too: no other step is taken in
    its place.

    Raises:
        UserError: `run` is not a run, or has no checkpoint of that step; names those that it has.
        DamagedError: that checkpoint is damaged; names the file and the intact steps.
    """
    layout = run_layout(run)
    chosen = _choose_step(layout, step)
    problem = codec.verify_directory(layout.checkpoint(chosen), CheckpointManifest, hashes=True)
    if problem is not None:
        intact = codec.intact_steps(layout.checkpoints, CheckpointManifest)
        others = [other for other in intact if other != chosen]
        raise DamagedError(f"{problem}; other intact steps: {_listed(others)}")
    return layout, chosen


def _choose_step(layout: RunLayout, step: int | None) -> int:
    steps = codec.listed_steps(layout.checkpoints)
    chosen = max(steps, default=None) if step is None else step
    if chosen is None or chosen not in steps:
        wanted = "no checkpoint" if step is None else f"no checkpoint {step}"
        raise UserError(f"{layout.root} has {wanted}; it has: {_listed(steps)}")
    return chosen


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def open_checkpoint(run: Path, step: int | None) -> tuple[RunLayout, int, Decoder]:
    """Load a checkpoint of `run`; errors as `intact_checkpoint`.

    Returns (layout, step, decoder in evaluation mode).
    """
    layout, chosen = intact_checkpoint(run, step)
    return layout, chosen, load_model(layout.checkpoint(chosen))
