"""One place that decides what a path is: a run of ours, one of pico-train 1.x, or a series of models."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from pico_contract.errors import UserError
from pico_contract.layout import RunLayout

from pico_analyze.sources import Source
from pico_analyze.sources.hub import DISK_GIB, PREFIX, open_hub
from pico_analyze.sources.legacy import is_legacy, open_legacy
from pico_analyze.sources.run import open_run
from pico_analyze.sources.series import is_model, open_folders, step_folders


def open_source(path: str | Path | Sequence[str | Path], disk_gib: float = DISK_GIB) -> Source:
    """Open whatever holds observed steps.

    Args:
        path: a run directory of pico-train, or of pico-train 1.x; a directory of model folders in safetensors, one a
            step (`models/` with `step1000/`, `step2000/`); a glob or a list of such folders; one such folder; or
            `hub:NAME@step*`, the revisions of a model on the Hugging Face hub.
        disk_gib: GiB that files downloaded from the hub may take.

    Which step a model folder is, its name says: see `pico_analyze.sources.series`. Directories and globs leave out
    what is no model or has no integer in its name; in a list that is an error.

    Raises:
        UserError: none of these; names what is nearest.
        DamagedError: a run whose manifest or configuration cannot be read.
    """
    if not isinstance(path, str | Path):
        return open_folders(path)
    if str(path).startswith(PREFIX):
        return open_hub(str(path), disk_gib)
    folder = Path(path)
    if RunLayout(folder).manifest.is_file() or not (folder.is_dir() or glob.has_magic(str(path))):
        return open_run(folder)
    if is_legacy(folder):
        return open_legacy(folder)
    if folder.is_dir():
        return open_folders(_of_directory(folder), None if is_model(folder) else folder.resolve().name)
    models = step_folders(Path(name) for name in glob.glob(str(path)))
    if not models:
        raise UserError(f'no folder that fits "{path}" is a model in safetensors with a step in its name')
    return open_folders(models)


def _of_directory(folder: Path) -> list[Path]:
    steps = step_folders(folder.iterdir())
    if not steps and not is_model(folder):
        raise UserError(
            f"{folder} is neither a run (it has no {RunLayout(folder).manifest.name}) nor a directory of models in "
            "safetensors with a step in each name"
        )
    return steps or [Path(os.path.abspath(folder))]  # "." has no name
