"""Differences between arms: groups of runs (seeds) with the same measurements, paired by step.

An arm's value is the mean over its runs of the mean over heads. Its difference from the first arm,
the baseline, gets an interval by Student's t over pairs of equal seeds, or by Welch's t over all
runs; with one run an arm it gets none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pico_contract.codec import replacing
from pico_contract.errors import UserError, did_you_mean

from pico_analyze import statistics
from pico_analyze.compare.arms import (
    CELL,
    Arm,
    ArmValues,
    means_over_heads,
    pair,
    strict_mean,
    values_of,
)
from pico_analyze.compare.confounds import mixed_keys
from pico_analyze.statistics import Interval, Pairing
from pico_analyze.table import for_spreadsheets

INTERVALS = ("student", "bootstrap")
"""How an interval may be computed; `student` is Student's t over pairs, or Welch's over all."""
COLUMNS = [
    *("baseline", "arm", "step", *CELL, "unit"),
    *("baseline_mean", "arm_mean", "difference", "relative", "low", "high", "effect_size"),
    *("baseline_runs", "arm_runs", "paired", "status"),
    *("interval", "df", "baseline_sd", "arm_sd", "p_max_t"),
]
_MAP = ["kind", "split", "metric"]
"""Keys of one map of differences: all its cells are one family of the max-t test."""


def compare(
    arms: Sequence[Arm],
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    interval: str = "student",
) -> pd.DataFrame:
    """Tabulate each later arm less the baseline: a row for each arm, comparable number and step.

    Where `step` is null the row is of the mean over all shared steps. `relative` is the difference
    over |baseline|. `low` and `high` bound the unadjusted 95% interval named in `interval`:
    `student_pairs` over the pairs of runs with equal seeds, `welch` over all runs if too few
    have a partner, or `bootstrap` if asked for. `df` is its degrees of freedom. `effect_size` is
    Hedges' g (1981), the difference in pooled standard deviations, corrected for few runs.
    `p_max_t` is adjusted for all layers, components and steps of one metric of one kind; it is null
    if so few runs cannot reach 0.05. `baseline_runs` and `arm_runs` count the independent runs
    that were used. `status`: `ok`, `one_run` (no interval and no effect size), `mixed` (nor there,
    since an arm holds several configurations), or `missing` if a run of either arm has no value.

    Args:
        arms: the baseline and what is compared with it.
        metrics: names of those compared; all by default.
        seed: of the bootstrap, and of the sample of permutations if all are too many to try.
        interval: one of `INTERVALS`.

    Raises:
        UserError: fewer than two arms, two of one name, nothing that two arms share, an unknown
            kind of interval, or a bootstrap of too few runs.
    """
    _check_names(arms)
    if interval not in INTERVALS:
        raise UserError(f'there is no interval "{interval}"{did_you_mean(interval, INTERVALS)}')
    values = [values_of(arm, metrics) for arm in arms]
    baseline, others = values[0], values[1:]
    by_bootstrap = interval == "bootstrap"
    frames = [_differences(baseline, arm, seed, by_bootstrap) for arm in others]
    return pd.concat(frames, ignore_index=True)


def _check_names(arms: Sequence[Arm]) -> None:
    if len(arms) < 2:
        raise UserError("there is nothing to compare: name at least two runs, or two groups")
    names = [arm.name for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f'two arms are called "{twice}": give them names of their own, --group NAME=RUN for each'
        )


def _differences(
    baseline: ArmValues, arm: ArmValues, seed: int, by_bootstrap: bool
) -> pd.DataFrame:
    cells = _shared_cells(baseline, arm)
    # The pairing is one for all numbers: it depends on seeds alone.
    pairing = pair(baseline, arm)
    x, y = compared(cells, len(baseline.units), pairing)
    if by_bootstrap:
        _check_bootstrap(x.shape[1], y.shape[1])
    table = cells.index.to_frame(index=False).astype({"step": "Int64"})
    table["baseline"], table["arm"] = baseline.arm.name, arm.arm.name
    _add_means(table, x, y)
    table["paired"] = bool(pairing.pairs)
    claim = _claim(baseline.arm, arm.arm, min(x.shape[1], y.shape[1]))
    table["status"] = np.where(table["difference"].isna(), "missing", claim)
    if claim == "ok":
        _add_inference(table, x, y, seed, by_bootstrap)
    return table.reindex(columns=COLUMNS)


def _shared_cells(baseline: ArmValues, arm: ArmValues) -> pd.DataFrame:
    """Join the numbers that all runs of both arms have, below their means over steps.

    Raises:
        UserError: they share none.
    """
    both = pd.concat(
        [baseline.cells, arm.cells], axis=1, join="inner", keys=["baseline", "arm"]
    )
    if both.empty:
        names = f'"{baseline.arm.name}" and "{arm.arm.name}"'
        raise UserError(f"{names} have no number of the same step in common")
    return pd.concat([_over_steps(both), both])


def _add_means(table: pd.DataFrame, x: Any, y: Any) -> None:
    """Add the columns that describe the runs of both arms and claim nothing beyond them."""
    table["baseline_mean"] = x.mean(axis=1)
    table["arm_mean"] = y.mean(axis=1)
    difference = table["arm_mean"] - table["baseline_mean"]
    table["difference"] = difference
    table["relative"] = difference / _size(table["baseline_mean"])
    table["baseline_sd"] = _scatter(x)
    table["arm_sd"] = _scatter(y)
    table["baseline_runs"] = x.shape[1]
    table["arm_runs"] = y.shape[1]


def _size(means: pd.Series) -> pd.Series:
    """Return |means|, null for 0: a baseline of 0 has no relative difference, not an infinite one."""
    sizes = means.abs()
    return sizes.where(sizes > 0)


def _claim(baseline: Arm, arm: Arm, runs: int) -> str:
    """Say whether an interval may be claimed: `ok`, or the reason why not."""
    if mixed_keys(baseline) or mixed_keys(arm):
        return "mixed"
    return "ok" if runs > 1 else "one_run"


def compared(cells: pd.DataFrame, count: int, pairing: Pairing) -> tuple[Any, Any]:
    """Split the values into (cells, runs) of either arm.

    If runs are paired, only those are left, and column i of one arm pairs with column i of the
    other. The first `count` columns of `cells` are the baseline's.
    """
    values = cells.to_numpy(dtype=float)
    x, y = values[:, :count], values[:, count:]
    if not pairing.pairs:
        return x, y
    first, second = zip(*pairing.pairs, strict=True)
    return x[:, list(first)], y[:, list(second)]


def _add_inference(table: pd.DataFrame, x: Any, y: Any, seed: int, by_bootstrap: bool) -> None:
    """Add the columns that claim something about seeds that were not run."""
    paired = bool(table["paired"].iloc[0])
    interval = _interval(x, y, paired, seed, by_bootstrap)
    table["interval"] = interval.method
    table["df"] = interval.df
    table["low"] = interval.low
    table["high"] = interval.high
    table["effect_size"] = statistics.hedges_g(x, y)
    table["p_max_t"] = np.nan
    # So few runs have so few permutations that no p can be small: a mark would be impossible.
    runs = x.shape[1], y.shape[1]
    least = statistics.least_p(*runs, paired)
    if least <= 1 - statistics.LEVEL:
        _add_max_t(table, x, y, paired, seed)


def _add_max_t(table: pd.DataFrame, x: Any, y: Any, paired: bool, seed: int) -> None:
    """Test all cells of each map together, so that p is adjusted for how many there are."""
    steps = table[table["step"].notna()]
    maps = steps.groupby(_MAP, dropna=False)
    for places in maps.indices.values():
        rows = steps.index[places]
        test = statistics.max_t(x[rows], y[rows], paired, seed)
        table.loc[rows, "p_max_t"] = test.p


def _check_bootstrap(n: int, m: int) -> None:
    least = statistics.LEAST_BOOTSTRAP_RUNS
    if min(n, m) < least:
        raise UserError(
            f"a bootstrap needs at least {least} runs in each arm; these have {n} and {m}: "
            "leave out --interval bootstrap"
        )


def _interval(x: Any, y: Any, paired: bool, seed: int, by_bootstrap: bool) -> Interval:
    if by_bootstrap:
        return statistics.bootstrap(x, y, paired, seed)
    return statistics.student_pairs(x, y) if paired else statistics.welch(x, y)


def _scatter(values: Any) -> Any:
    return values.std(axis=1, ddof=1) if values.shape[1] > 1 else np.full(len(values), np.nan)


def _over_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """Average over the steps, and over the references if each step has another."""
    # A row for each number whatever its step, in the shape of a row at a step, so that both can
    # stand in one table.
    kept = [name for name in cells.index.names if name not in ("step", "reference_step")]
    means = cells.groupby(level=kept, dropna=False, sort=False).agg(strict_mean)
    index = means.index.to_frame()
    index[["step", "reference_step"]] = pd.NA
    return means.set_axis(pd.MultiIndex.from_frame(index[list(cells.index.names)]))


def curves(arms: Sequence[Arm]) -> pd.DataFrame:
    """Tabulate run by run the numbers that `compare` compares.

    There is a row for each arm, run, number and step, the mean over heads.
    """
    frames = []
    for arm in arms:
        for run, table in enumerate(arm.tables):
            values = means_over_heads(table).reset_index()
            status = np.where(values["value"].isna(), "missing", "ok")
            frames.append(values.assign(arm=arm.name, run=f"{arm.name}/{run}", status=status))
    return pd.concat(frames, ignore_index=True)


def write(differences: pd.DataFrame, parquet: Path, csv: Path) -> None:
    """Write the differences as a Parquet file and its CSV twin."""
    with replacing(parquet) as draft:
        differences.to_parquet(draft, index=False)
    with replacing(csv) as draft:
        for_spreadsheets(differences).to_csv(draft, index=False)
