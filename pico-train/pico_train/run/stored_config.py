"""The configuration that a run recorded, which may have come from elsewhere with the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pico_contract.errors import DamagedError, UserError
from pico_contract.files import MISSING, irregularity
from pico_contract.layout import RunLayout
from pico_contract.trust import require_trust

from pico_train.config import load, read_yaml
from pico_train.data.sources import expand_short_forms
from pico_train.run.config import RunConfig


def load_stored(
    layout: RunLayout, overrides: Sequence[str] = (), *, trust: bool = False
) -> RunConfig:
    """Load the configuration that the run recorded, with `overrides`.

    Raises:
        DamagedError: config.yaml is not a file of the run.
        UserError: config.yaml is missing or invalid, or it names code to import and `trust` is not
            given.
    """
    problem = irregularity(layout.config)
    if problem == MISSING:
        raise UserError(f"there is no configuration file {layout.config}")
    if problem is not None:
        raise DamagedError(f"{layout.config} {problem}")
    raw = read_yaml(layout.config)
    # Before anything is imported: the file may name modules of an attacker.
    require_trust([raw.get("method"), raw.get("observe")], layout.config, trust)
    return load(RunConfig, layout.config, expand_short_forms(overrides, raw))


def is_stored(path: Path) -> bool:
    """Tell whether the file `path` is the configuration that a run recorded."""
    layout = RunLayout(path.parent)
    return path.name == layout.config.name and layout.manifest.is_file()
