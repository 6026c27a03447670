"""The runs of the study, their order, and the configuration of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pico_train.config import load, read_yaml
from pico_train.run import RunConfig

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Planned:
    """One run: an arm at a width, with one seed for weights, rows and factors."""

    arm: str
    width: int
    seed: int
    config: RunConfig


def read_arms() -> dict[str, Any]:
    """Read arms.yaml."""
    return read_yaml(HERE / "arms.yaml")


def planned(setting: str, runs_dir: Path, overrides: Sequence[str] = ()) -> list[Planned]:
    """The runs of `setting`: width by width, first the arms of several seeds, seed by seed, then the others."""
    arms = read_arms()
    chosen = arms["settings"][setting]
    runs = [
        Planned(arm, width, seed, arm_config(setting, arm, runs_dir, overrides, width, seed))
        for width in chosen["widths"]
        for seed in range(max(chosen["seeds"].values()))
        for arm in arms["arms"]
        if seed < chosen["seeds"][arm]
    ]
    return sorted(runs, key=lambda run: (chosen["widths"].index(run.width), -chosen["seeds"][run.arm], run.seed))


def arm_config(
    setting: str, arm: str, runs_dir: Path, overrides: Sequence[str] = (), width: int | None = None, seed: int = 0
) -> RunConfig:
    """The run of `arm` with `seed`, at the setting's first width by default."""
    arms = read_arms()
    chosen, about = arms["settings"][setting], arms["arms"][arm]
    width = width or chosen["widths"][0]
    low_rank = [*arms["low_rank"], *chosen["low_rank"], *about["set"]] if "set" in about else []
    own = [
        f"name={arm}-{width}-{seed}",
        f"runs_dir={runs_dir}",
        f"model.hidden_size={width}",
        f"model.intermediate_size={4 * width}",
        *(f"seed.{which}={seed}" for which in ("init", "data", "method")),
    ]
    return load(RunConfig, HERE / "base.yaml", [*chosen["set"], *low_rank, *own, *overrides])
