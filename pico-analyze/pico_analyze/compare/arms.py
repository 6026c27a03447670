"""Arms of a comparison: runs that should differ in their seeds alone, and which of them count as
one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from pico_analyze.compare.run_facts import RunFacts, read_facts
from pico_analyze.sources.base import Source
from pico_analyze.statistics import Pairing, choose_pairs

CELL = [
    "kind",
    "split",
    "component",
    "layer",
    "metric",
    "variant",
    "reference_step",
    "reference_module",
]
"""With the step, what makes numbers of two runs comparable."""
PLAIN = "plain"
"""The training method that draws nothing from `seed.method`."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone, and the measurement table of each."""

    name: str
    runs: list[Source]
    tables: list[pd.DataFrame]

    @cached_property
    def facts(self) -> list[RunFacts]:
        """What is recorded of each run."""
        return [read_facts(run) for run in self.runs]

    @property
    def draws(self) -> bool:
        """Whether its training method draws from `seed.method`."""
        return any(facts.method != PLAIN for facts in self.facts)


@dataclass(frozen=True)
class IndependentRuns:
    """Runs of an arm that count as one, since they are not independent of each other.

    Attributes:
        runs: their places in the arm.
        why: "", or why several runs are one unit: `seeds`, `numbers` or `parent`.
        identical: whether all their numbers are the same bits.
    """

    runs: tuple[int, ...]
    why: str = ""
    identical: bool = False


@dataclass(frozen=True)
class ArmValues:
    """The numbers of an arm by independent unit.

    Attributes:
        arm: the arm.
        units: in the order of their first runs.
        cells: a row for each number and step that every run has, a column for each unit.
        telling: (cells,) whether two runs that agree there to the last bit are one; counts may
            agree by nature.
    """

    arm: Arm
    units: list[IndependentRuns]
    cells: pd.DataFrame
    telling: pd.Series

    def name(self, unit: int) -> str:
        """Name the runs of a unit."""
        return " and ".join(self.arm.runs[run].name for run in self.units[unit].runs)

    def keys(self, with_method: bool, parents: frozenset[str]) -> list[Hashable | None]:
        """What a partner of each unit in another arm must share: its seeds, and which of `parents`
        it began from."""
        found: list[Hashable | None] = []
        for unit in self.units:
            facts = [self.arm.facts[run] for run in unit.runs]
            seeds = {seed_key(one, with_method) for one in facts}
            shared = {one.parent for one in facts} & parents
            found.append(None if None in seeds else (frozenset(seeds), frozenset(shared)))
        return found


def values_of(arm: Arm, metrics: Sequence[str] | None = None) -> ArmValues:
    """Collect the numbers of an arm: means over heads, and over runs that are not independent of
    each other."""
    series, fractional = [], []
    for table in arm.tables:
        rows = table if metrics is None else table[table["metric"].isin(metrics)]
        keys = [rows[column] for column in ("step", *CELL, "unit")]
        series.append(rows["value"].groupby(keys, dropna=False, sort=False).agg(strict_mean))
        fractional.append((rows["value"] % 1 > 0).groupby(keys, dropna=False, sort=False).any())
    by_run = pd.concat(series, axis=1, join="inner", keys=range(len(series))).replace(
        [np.inf, -np.inf], np.nan
    )
    telling = pd.concat(fractional, axis=1, join="inner").any(axis=1)
    units = _units(arm, by_run.to_numpy(dtype=float)[telling.to_numpy()])
    means = [by_run[list(unit.runs)].mean(axis=1, skipna=False) for unit in units]
    return ArmValues(arm, units, pd.concat(means, axis=1, keys=range(len(units))), telling)


def pair(baseline: ArmValues, arm: ArmValues) -> Pairing:
    """Pair the units of two arms by their seeds; `seed.method` counts where both methods draw from
    it."""
    with_method = baseline.arm.draws and arm.arm.draws
    parents = frozenset(_parents(baseline.arm) & _parents(arm.arm))
    return choose_pairs(baseline.keys(with_method, parents), arm.keys(with_method, parents))


def strict_mean(values: pd.Series) -> float:
    """Return the mean, null where one value is."""
    return float(values.mean(skipna=False))


def seed_key(facts: RunFacts, with_method: bool) -> tuple[tuple[str, int], ...] | None:
    """Return the seeds that must be equal for two runs to be a pair; None where they are not
    recorded."""
    kept = {name: seed for name, seed in facts.seeds.items() if with_method or name != "method"}
    return tuple(sorted(kept.items())) or None


def _parents(arm: Arm) -> set[str]:
    return {facts.parent for facts in arm.facts if facts.parent is not None}


def _units(arm: Arm, telling: Any) -> list[IndependentRuns]:
    """Group the runs of an arm that began from one pretrained model, have equal seeds, or have
    equal numbers.

    `telling` is (cells, runs).
    """
    units: list[IndependentRuns] = []
    for run, facts in enumerate(arm.facts):
        for place, unit in enumerate(units):
            same = bool(len(telling)) and np.array_equal(
                telling[:, run], telling[:, unit.runs[0]], equal_nan=True
            )
            why = _why_one(facts, arm.facts[unit.runs[0]], arm.draws, same)
            if why:
                identical = same and (unit.identical or len(unit.runs) == 1)
                units[place] = IndependentRuns((*unit.runs, run), unit.why or why, identical)
                break
        else:
            units.append(IndependentRuns((run,)))
    return units


def _why_one(facts: RunFacts, other: RunFacts, with_method: bool, identical: bool) -> str:
    if facts.parent is not None and facts.parent == other.parent:
        return "parent"
    key = seed_key(facts, with_method)
    if key is not None and key == seed_key(other, with_method):
        return "seeds"
    return "numbers" if identical else ""
