"""Arms whose runs were measured before: tables and run.json by hand, no tensor is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pico_analyze.compare.arms import Arm
from pico_analyze.table import from_rows
from pico_contract.layout import RunLayout

Value = Callable[[int, int, int], float | None]


@dataclass
class Manifest:
    """What the comparison reads of run.json."""

    seeds: dict[str, int]
    data: dict[str, Any] = field(default_factory=lambda: {"fingerprint": "f", "order": "shuffled"})
    method: str = "plain"
    status: str = "finished"
    step: int = 10
    parent: str | None = None
    parameters: dict[str, int] = field(default_factory=lambda: {"total": 100})
    sessions: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Measured:
    """A source that was measured before."""

    name: str
    manifest: Manifest | None
    model: dict[str, Any] = field(default_factory=lambda: {"hidden_size": 8})
    steps: tuple[int, ...] = (0, 10)
    per_step: int = 100
    layout: RunLayout | None = None

    def tokens(self, step: int) -> int:
        return step * self.per_step

    def configure(self, root: Path, config: Mapping[str, Any]) -> None:
        """Write `config` as this run's config.yaml."""
        self.layout = RunLayout(root / self.name)
        self.layout.root.mkdir(parents=True)
        self.layout.config.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")


def table(value: Value, steps: Sequence[int] = (0, 10), **columns: Any) -> pd.DataFrame:
    """PER of weights of two layers, of q_proj and of the two heads of a circuit: value(step, layer, head)."""
    rows = []
    for step, layer, head in itertools.product(steps, (0, 1), (None, 0, 1)):
        component = "q_proj" if head is None else "ov_circuit"
        place = {"step": step, "component": component, "layer": layer, "head": head, "module": f"{layer}.{component}"}
        number = value(step, layer, head or 0)
        what = {"kind": "weights", "metric": "per", "unit": "1", "variant": "{}", "status": "ok" if number else "zero"}
        rows.append({"run": "r", **place, **what, "value": number, **columns})
    return from_rows(rows)


def arm(name: str, *offsets: float, seeds: Sequence[int | None] | None = None, **of: Any) -> Arm:
    """Runs whose values are 1 + step + layer + head + offset; a seed of None is not recorded."""
    chosen = range(len(offsets)) if seeds is None else seeds
    runs: list[Any] = [
        Measured(f"{name}{place}" if seed is None else f"{name}{seed}", _manifest(seed))
        for place, seed in enumerate(chosen)
    ]
    tables = [table(lambda step, layer, head, o=o: 1 + step + layer + head + o, **of) for o in offsets]
    return Arm(name, runs, tables)


def _manifest(seed: int | None) -> Manifest | None:
    return None if seed is None else Manifest({"init": seed, "data": seed, "method": seed})


def row(found: pd.DataFrame, step: int | None, component: str = "q_proj", layer: int = 0) -> Any:
    """The one row of a comparison at `step`, or over the steps."""
    at = found["step"].isna() if step is None else found["step"] == step
    chosen = found[at & (found["component"] == component) & (found["layer"] == layer)]
    assert len(chosen) == 1
    return chosen.iloc[0]
