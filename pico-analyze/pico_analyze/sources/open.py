"""Opening a path as a run of pico-train, a run of pico-train 1.x, or a series of models."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from pico_contract.errors import UserError
from pico_contract.layout import RunLayout

from pico_analyze.sources.base import Source
from pico_analyze.sources.hub import DISK_GIB, open_hub
from pico_analyze.sources.hub_store import PREFIX
from pico_analyze.sources.model_series import is_model, open_folders, open_one, step_folders
from pico_analyze.sources.pico_v1 import is_legacy, open_legacy
from pico_analyze.sources.run import open_run


def open_source(path: str | Path | Sequence[str | Path], disk_gib: float = DISK_GIB) -> Source:
    """Open a source of observed steps.

    Args:
        path: a run directory of pico-train, or of pico-train 1.x; a directory of model folders in
            safetensors, one a step (`models/` with `step1000/`, `step2000/`); a glob or a list of
            such folders; one model folder; or `hub:NAME@step*`, the revisions of a model on the
            Hugging Face hub.
        disk_gib: GiB that files downloaded from the hub may take.

    The step of a model folder is read from its name: see `pico_analyze.sources.step_names`.
    Directories and globs leave out models whose names say no step, with a note in `notes` of the
    source; in a list that is an error. One model folder alone is step 0 if its name says none.

    Raises:
        UserError: none of these; names the nearest.
        DamagedError: a run whose manifest or configuration cannot be read.
    """
    if not isinstance(path, str | Path):
        return open_one(Path(path[0])) if len(path) == 1 else open_folders(path)
    if str(path).startswith(PREFIX):
        return open_hub(str(path), disk_gib)
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"{folder} is a file: name the folder that it lies in")
    if RunLayout(folder).manifest.is_file():
        return open_run(folder)
    if folder.is_dir():
        return open_legacy(folder) if is_legacy(folder) else _open_directory(folder)
    if glob.has_magic(str(path)):
        return _open_glob(str(path))
    return open_run(folder)  # raises, and names the nearest run


def _open_glob(pattern: str) -> Source:
    models, notes = step_folders(Path(name) for name in glob.glob(pattern))
    if not models:
        raise UserError(
            f'no folder that fits "{pattern}" is a model with a step in its name{_first(notes)}'
        )
    return open_folders(models, origin=os.path.abspath(pattern), notes=notes)


def _open_directory(folder: Path) -> Source:
    """Open a directory of models, or one model."""
    steps, notes = step_folders(folder.iterdir())
    if steps:
        if is_model(folder):
            notes.append(f"left out: the model in {folder} itself, whose name says no step")
        return open_folders(steps, folder.resolve().name, str(folder.resolve()), notes)
    if is_model(folder):
        return open_one(folder)
    raise UserError(
        f"{folder} is neither a run (it has no {RunLayout(folder).manifest.name}) nor a directory of models with a "
        f"step in each name{_first(notes)}"
    )


def _first(notes: Sequence[str]) -> str:
    return "".join(f"; {note}" for note in notes[:1])
