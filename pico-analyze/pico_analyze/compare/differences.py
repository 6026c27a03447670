"""Differences between arms: groups of runs (seeds) of which the same was measured, paired by step.

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
from pico_analyze.compare.arms import CELL, Arm, ArmValues, pair, strict_mean, values_of
from pico_analyze.compare.confounds import mixed_keys
from pico_analyze.statistics import Interval, Pairing
from pico_analyze.table import for_spreadsheets

INTERVALS = ("student", "bootstrap")
"""How an interval may be computed; `student` is Student's t over pairs, or Welch's over all
runs."""
COLUMNS = [
    *("baseline", "arm", "step", *CELL, "unit"),
    *("baseline_mean", "arm_mean", "difference", "relative", "low", "high", "effect_size"),
    *("baseline_runs", "arm_runs", "paired", "status"),
    *("interval", "df", "baseline_sd", "arm_sd", "p_max_t"),
]
_MAP = ["kind", "split", "metric"]
"""What one map of differences shows: all its cells are one family of the max-t test."""


def compare(
    arms: Sequence[Arm],
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    interval: str = "student",
) -> pd.DataFrame:
    """Tabulate each later arm less the baseline: a row for each arm, comparable number and step.

    Where `step` is null the row is of the mean over all shared steps. `relative` is the difference
    over |baseline|. `low` and `high` bound the unadjusted 95% interval named in `interval`:
    `student_pairs` over the pairs of runs with equal seeds, `welch` over all runs where too few
    have a partner, or `bootstrap` if asked for. `df` is its degrees of freedom. `effect_size` is
    Hedges' g (1981), the difference in pooled standard deviations, corrected for few runs.
    `p_max_t` is adjusted for all layers, components and steps of one metric of one kind; it is null
    where so few runs cannot reach 0.05. `baseline_runs` and `arm_runs` count the independent runs
    that were used. `status`: `ok`, `one_run` (no interval and no effect size), `mixed` (nor there,
    since an arm holds several configurations), or `missing` where a run of either arm has no value.

    Args:
        arms: the baseline and what is compared with it.
        metrics: names of those compared; all by default.
        seed: of the bootstrap, and of the sample of permutations where there are too many to try
            all.
        interval: one of `INTERVALS`.

    Raises:
        UserError: fewer than two arms, two of one name, nothing that two arms share, an unknown
            kind of interval, or a bootstrap of too few runs.
    """
    _check_names(arms)
    if interval not in INTERVALS:
        raise UserError(f'there is no interval "{interval}"{did_you_mean(interval, INTERVALS)}')
    values = [values_of(arm, metrics) for arm in arms]
    frames = [_differences(values[0], other, seed, interval == "bootstrap") for other in values[1:]]
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
    both = pd.concat([baseline.cells, arm.cells], axis=1, join="inner", keys=["baseline", "arm"])
    if both.empty:
        raise UserError(
            f'"{baseline.arm.name}" and "{arm.arm.name}" have no number of the same step in common'
        )
    cells = pd.concat([_over_steps(both), both])
    pairing = pair(baseline, arm)
    x, y = compared(cells, len(baseline.units), pairing)
    if by_bootstrap:
        _check_bootstrap(x.shape[1], y.shape[1])
    table = cells.index.to_frame(index=False).astype({"step": "Int64"})
    table["baseline"], table["arm"] = baseline.arm.name, arm.arm.name
    table["baseline_mean"], table["arm_mean"] = x.mean(axis=1), y.mean(axis=1)
    table["difference"] = table["arm_mean"] - table["baseline_mean"]
    size = table["baseline_mean"].abs()
    table["relative"] = table["difference"] / size.where(size > 0)
    table["baseline_sd"], table["arm_sd"] = _scatter(x), _scatter(y)
    table["baseline_runs"], table["arm_runs"], table["paired"] = (
        x.shape[1],
        y.shape[1],
        bool(pairing.pairs),
    )
    mixed = bool(mixed_keys(baseline.arm) or mixed_keys(arm.arm))
    alone = min(x.shape[1], y.shape[1]) < 2
    claims = "mixed" if mixed else "one_run" if alone else "ok"
    table["status"] = np.where(table["difference"].isna(), "missing", claims)
    if claims == "ok":
        _add_inference(table, x, y, seed, by_bootstrap)
    return table.reindex(columns=COLUMNS)


def compared(cells: pd.DataFrame, count: int, pairing: Pairing) -> tuple[Any, Any]:
    """Split the values into (cells, runs) of either arm: of the pairs in one order, or of all
    runs."""
    values = cells.to_numpy(dtype=float)
    x, y = values[:, :count], values[:, count:]
    if not pairing.pairs:
        return x, y
    return x[:, [i for i, _ in pairing.pairs]], y[:, [j for _, j in pairing.pairs]]


def _add_inference(table: pd.DataFrame, x: Any, y: Any, seed: int, by_bootstrap: bool) -> None:
    paired = bool(table["paired"].iloc[0])
    found = _interval(x, y, paired, seed, by_bootstrap)
    table["interval"], table["df"] = found.method, found.df
    table["low"], table["high"] = found.low, found.high
    table["effect_size"] = statistics.hedges_g(x, y)
    table["p_max_t"] = np.nan
    if statistics.least_p(x.shape[1], y.shape[1], paired) > 1 - statistics.LEVEL:
        return
    at_steps = table[table["step"].notna()]
    for places in at_steps.groupby(_MAP, dropna=False).indices.values():
        rows = at_steps.index[places]
        table.loc[rows, "p_max_t"] = statistics.max_t(x[rows], y[rows], paired, seed).p


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
    """Average over the steps, and over the references where each step has its own."""
    kept = [name for name in cells.index.names if name not in ("step", "reference_step")]
    means = cells.groupby(level=kept, dropna=False, sort=False).agg(strict_mean)
    index = means.index.to_frame()
    index[["step", "reference_step"]] = pd.NA
    return means.set_axis(pd.MultiIndex.from_frame(index[list(cells.index.names)]))


def curves(arms: Sequence[Arm]) -> pd.DataFrame:
    """Tabulate run by run what `compare` compares: a row for each arm, run, number and step, the
    mean over heads."""
    frames = []
    for arm in arms:
        for place, one in enumerate(arm.tables):
            keys = [one[column] for column in ("step", *CELL, "unit")]
            values = (
                one["value"].groupby(keys, dropna=False, sort=False).agg(strict_mean).reset_index()
            )
            status = np.where(values["value"].isna(), "missing", "ok")
            frames.append(values.assign(arm=arm.name, run=f"{arm.name}/{place}", status=status))
    return pd.concat(frames, ignore_index=True)


def write(differences: pd.DataFrame, parquet: Path, csv: Path) -> None:
    """Write the differences as a Parquet file and its CSV twin."""
    for path, save in (
        (parquet, differences.to_parquet),
        (csv, for_spreadsheets(differences).to_csv),
    ):
        with replacing(path) as draft:
            save(draft, index=False)
