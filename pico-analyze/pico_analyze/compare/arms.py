"""Arms of a comparison: runs that should differ in their seeds alone, and which count as one."""

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
"""The columns that, with the step, identify a number in the tables of two runs."""
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
        """The record of each run."""
        return [read_facts(run) for run in self.runs]

    @property
    def draws(self) -> bool:
        """Whether its training method draws from `seed.method`."""
        return any(facts.method != PLAIN for facts in self.facts)


@dataclass(frozen=True)
class IndependentRuns:
    """Runs of an arm that count as one, since they are not independent of each other.

    Attributes:
        runs: their positions in the arm.
        why: why several runs are one unit: `seeds`, `numbers` or `parent`; "" for a single run.
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
        telling: (cells,) whether equal bits there suggest that two runs are one. It is false for
            counts, which may agree in runs that differ.
    """

    arm: Arm
    units: list[IndependentRuns]
    cells: pd.DataFrame
    telling: pd.Series

    def name(self, unit: int) -> str:
        """Name the runs of a unit."""
        names = [self.arm.runs[run].name for run in self.units[unit].runs]
        return " and ".join(names)

    def keys(self, with_method: bool, parents: frozenset[str]) -> list[Hashable | None]:
        """List for each unit its seeds and which of `parents` it began from.

        Its partner in another arm must share them. None stands for seeds that are not recorded.
        """
        keys: list[Hashable | None] = []
        for unit in self.units:
            facts = [self.arm.facts[run] for run in unit.runs]
            seeds = {seed_key(run, with_method) for run in facts}
            shared = {run.parent for run in facts} & parents
            # Runs fine-tuned from one model pair with each other only.
            keys.append(None if None in seeds else (frozenset(seeds), frozenset(shared)))
        return keys


def values_of(arm: Arm, metrics: Sequence[str] | None = None) -> ArmValues:
    """Collect the numbers of an arm: means over heads, and over the runs of each unit."""
    tables = arm.tables
    if metrics is not None:
        tables = [table[table["metric"].isin(metrics)] for table in tables]
    by_run = _numbers_by_run(tables)
    fractional = _join_runs([_are_fractional(table) for table in tables])
    telling = fractional.any(axis=1)
    numbers = by_run.to_numpy(dtype=float)
    units = _units(arm, numbers[telling.to_numpy()])
    means = [_unit_means(by_run, unit) for unit in units]
    return ArmValues(arm, units, _join_runs(means), telling)


def _numbers_by_run(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the means over heads of all runs; what is infinite has no value."""
    joined = _join_runs([means_over_heads(table) for table in tables])
    return joined.replace([np.inf, -np.inf], np.nan)


def _unit_means(by_run: pd.DataFrame, unit: IndependentRuns) -> pd.Series:
    return by_run[list(unit.runs)].mean(axis=1, skipna=False)


def _join_runs(series: Sequence[pd.Series]) -> pd.DataFrame:
    """Join series as columns, keeping the numbers that all of them have."""
    return pd.concat(series, axis=1, join="inner", keys=range(len(series)))


# Counts, such as a numerical rank, are whole numbers and agree by nature in runs that differ.
def _are_fractional(rows: pd.DataFrame) -> pd.Series:
    """Return for each number whether it is fractional in any head, and so not a count."""
    return _by_number(rows["value"] % 1 > 0, rows).any()


def means_over_heads(rows: pd.DataFrame) -> pd.Series:
    """Average the values of a table over heads: one for each step and number."""
    return _by_number(rows["value"], rows).agg(strict_mean)


def _by_number(values: pd.Series, rows: pd.DataFrame) -> Any:
    """Group values by the step and number of their rows, heads together."""
    # The unit follows from the metric; it is a key only to stay in the table.
    keys = [rows[column] for column in ("step", *CELL, "unit")]
    return values.groupby(keys, dropna=False, sort=False)


def pair(baseline: ArmValues, arm: ArmValues) -> Pairing:
    """Pair the units of two arms by their seeds.

    `seed.method` counts only if both methods draw from it.
    """
    with_method = baseline.arm.draws and arm.arm.draws
    parents = frozenset(_parents(baseline.arm) & _parents(arm.arm))
    return choose_pairs(baseline.keys(with_method, parents), arm.keys(with_method, parents))


def strict_mean(values: pd.Series) -> float:
    """Return the mean, null if one value is."""
    return float(values.mean(skipna=False))


def seed_key(facts: RunFacts, with_method: bool) -> tuple[tuple[str, int], ...] | None:
    """Return the seeds that must be equal for two runs to be a pair; None if not recorded."""
    kept = {name: seed for name, seed in facts.seeds.items() if with_method or name != "method"}
    return tuple(sorted(kept.items())) or None


def _parents(arm: Arm) -> set[str]:
    return {facts.parent for facts in arm.facts if facts.parent is not None}


def _units(arm: Arm, telling: Any) -> list[IndependentRuns]:
    """Group the runs of an arm that are not independent of each other.

    Those began from one pretrained model, or have equal seeds, or equal numbers. `telling` is
    (cells, runs).
    """
    units: list[IndependentRuns] = []
    for run, facts in enumerate(arm.facts):
        for position, unit in enumerate(units):
            first = unit.runs[0]
            same = _are_identical(telling[:, run], telling[:, first])
            why = _why_one(facts, arm.facts[first], arm.draws, same)
            if why:
                # The unit stays identical only while all its runs are.
                identical = same and (unit.identical or len(unit.runs) == 1)
                units[position] = IndependentRuns((*unit.runs, run), unit.why or why, identical)
                break
        else:
            units.append(IndependentRuns((run,)))
    return units


def _are_identical(numbers: Any, other: Any) -> bool:
    return len(numbers) > 0 and np.array_equal(numbers, other, equal_nan=True)


def _why_one(facts: RunFacts, other: RunFacts, with_method: bool, identical: bool) -> str:
    """Say why two runs count as one: `parent`, `seeds` or `numbers`; "" if they do not."""
    if facts.parent is not None and facts.parent == other.parent:
        return "parent"
    key = seed_key(facts, with_method)
    if key is not None and key == seed_key(other, with_method):
        return "seeds"
    return "numbers" if identical else ""
