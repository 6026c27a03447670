"""Differences between arms: groups of runs (seeds) of which the same was measured, paired by step.

An arm's value is the mean over its runs of the mean over heads. Its difference from the first arm, the baseline, gets
a bootstrap interval over runs where both arms have at least two; with one run an arm no interval is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pico_contract.codec import replacing
from pico_contract.errors import UserError

from pico_analyze.sources import Source
from pico_analyze.table import for_spreadsheets

LEVEL = 0.95
"""Of the intervals."""
DRAWS = 2000
"""Resamples of a bootstrap."""
WHAT = ["kind", "split", "component", "layer", "metric", "variant", "reference_step", "reference_module"]
"""With the step, what makes numbers of two runs comparable."""
COLUMNS = [
    *("baseline", "arm", "step", *WHAT, "unit"),
    *("baseline_mean", "arm_mean", "difference", "relative", "low", "high", "effect_size"),
    *("baseline_runs", "arm_runs", "paired", "status"),
]
_UNCORRECTED = (
    "They are not corrected for their number: decide on a metric and a component beforehand, or repeat on new seeds "
    "what is found here."
)
_CELLS = 2000  # cells whose resamples are held at a time


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone, and the measurement table of each."""

    name: str
    runs: list[Source]
    tables: list[pd.DataFrame]

    @property
    def seeds(self) -> list[tuple[tuple[str, int], ...]]:
        """The seeds of each run, empty where a source does not record them."""
        manifests = [getattr(run, "manifest", None) for run in self.runs]
        return [tuple(sorted(manifest.seeds.items())) if manifest else () for manifest in manifests]


def compare(arms: Sequence[Arm], metrics: Sequence[str] | None = None, seed: int = 0) -> pd.DataFrame:
    """A row for each arm after the first, comparable number and step: the arm's mean less the baseline's.

    Where `step` is null the row is of the mean over all shared steps. `relative` is the difference over |baseline|;
    `low` and `high` bound the percentile bootstrap interval (Efron 1979); `effect_size` is Hedges' g (1981), the
    difference in pooled standard deviations, corrected for few runs. Runs are resampled in pairs where both arms have
    the same seeds, and each arm by itself elsewhere. `status`: `ok`, `one_run` (no interval and no effect size), or
    `missing` where a run of either arm has no value.

    Raises:
        UserError: fewer than two arms, two of one name, or nothing that two arms share.
    """
    if len(arms) < 2:
        raise UserError("there is nothing to compare: name at least two runs, or two groups")
    names = [arm.name for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'two arms are called "{twice}": give them other names')
    values = [_values(arm, metrics) for arm in arms]
    frames = [
        _differences(arms[0], arm, values[0], other, seed) for arm, other in zip(arms[1:], values[1:], strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def _values(arm: Arm, metrics: Sequence[str] | None) -> pd.DataFrame:
    """Of what every run of an arm measured: a row for each number and step, a column for each run."""
    series = []
    for table in arm.tables:
        rows = table if metrics is None else table[table["metric"].isin(metrics)]
        keys = [rows[column] for column in ("step", *WHAT, "unit")]
        series.append(rows["value"].groupby(keys, dropna=False, sort=False).agg(_mean))
    return pd.concat(series, axis=1, join="inner", keys=range(len(series)))


def _mean(values: pd.Series) -> float:
    """Over heads; none where one has no value."""
    return float(values.mean(skipna=False))


def _differences(baseline: Arm, arm: Arm, old: pd.DataFrame, new: pd.DataFrame, seed: int) -> pd.DataFrame:
    both = pd.concat([old, new], axis=1, join="inner", keys=["baseline", "arm"])
    if both.empty:
        raise UserError(f'"{baseline.name}" and "{arm.name}" have no number of the same step in common')
    cells = pd.concat([_over_steps(both), both])
    count = old.shape[1]
    order = _paired(baseline, arm)
    x, y = cells.to_numpy()[:, :count], cells.to_numpy()[:, count:]
    y = y if order is None else y[:, order]
    found = cells.index.to_frame(index=False).astype({"step": "Int64"})
    found["baseline"], found["arm"] = baseline.name, arm.name
    found["baseline_mean"], found["arm_mean"] = x.mean(axis=1), y.mean(axis=1)
    found["difference"] = found["arm_mean"] - found["baseline_mean"]
    size = found["baseline_mean"].abs()
    found["relative"] = found["difference"] / size.where(size > 0)
    found["low"], found["high"] = interval(x, y, order is not None, seed)
    found["effect_size"] = hedges_g(x, y)
    found["baseline_runs"], found["arm_runs"], found["paired"] = x.shape[1], y.shape[1], order is not None
    alone = min(x.shape[1], y.shape[1]) < 2
    found["status"] = np.where(found["difference"].isna(), "missing", "one_run" if alone else "ok")
    return found[COLUMNS]


def _over_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """The mean over the steps, and over the references where each step has its own."""
    kept = [name for name in cells.index.names if name not in ("step", "reference_step")]
    means = cells.groupby(level=kept, dropna=False, sort=False).agg(_mean)
    index = means.index.to_frame()
    index[["step", "reference_step"]] = pd.NA
    return means.set_axis(pd.MultiIndex.from_frame(index[list(cells.index.names)]))


def _paired(baseline: Arm, arm: Arm) -> list[int] | None:
    """For each run of the baseline the run of `arm` with the same seeds; None where they do not match one to one."""
    ours, theirs = baseline.seeds, arm.seeds
    if () in ours or len(set(ours)) < len(ours) or sorted(ours) != sorted(theirs):
        return None
    return [theirs.index(seeds) for seeds in ours]


def interval(x: Any, y: Any, paired: bool, seed: int) -> tuple[Any, Any]:
    """Percentile bootstrap bounds of mean(y) - mean(x), row by row; the columns (runs) are resampled `DRAWS` times.

    Null in rows that have a null, and everywhere where there is one column only.
    """
    low = np.full(len(x), np.nan)
    high = low.copy()
    if min(x.shape[1], y.shape[1]) < 2:
        return low, high
    generator = np.random.default_rng(seed)
    of_x = _weights(generator, x.shape[1])
    of_y = of_x if paired else _weights(generator, y.shape[1])
    tail = 100 * (1 - LEVEL) / 2
    for start in range(0, len(x), _CELLS):
        part = slice(start, start + _CELLS)
        drawn = (y[part] - x[part]) @ of_x if paired else y[part] @ of_y - x[part] @ of_x
        low[part], high[part] = np.percentile(drawn, [tail, 100 - tail], axis=1)
    return low, high


def _weights(generator: np.random.Generator, runs: int) -> Any:
    """(runs, DRAWS): how much each run counts in the mean of each resample."""
    drawn = generator.integers(runs, size=(DRAWS, runs))
    return (drawn[:, :, None] == np.arange(runs)).mean(axis=1).T


def hedges_g(x: Any, y: Any) -> Any:
    """(mean(y) - mean(x)) / s * (1 - 3 / (4 (n + m) - 9)) row by row, s the pooled standard deviation of n + m runs.

    Null where an arm has one run or no run differs from another.
    Source: Hedges 1981, "Distribution theory for Glass's estimator of effect size and related estimators", eq. 6e.
    """
    n, m = x.shape[1], y.shape[1]
    if min(n, m) < 2:
        return np.full(len(x), np.nan)
    pooled = np.sqrt(((n - 1) * x.var(axis=1, ddof=1) + (m - 1) * y.var(axis=1, ddof=1)) / (n + m - 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        g = (y.mean(axis=1) - x.mean(axis=1)) / pooled * (1 - 3 / (4 * (n + m) - 9))
    return np.where(pooled > 0, g, np.nan)


def curves(arms: Sequence[Arm]) -> pd.DataFrame:
    """What `compare` compares, run by run: a row for each arm, run, number and step, the mean over heads."""
    frames = []
    for arm in arms:
        for place, one in enumerate(arm.tables):
            keys = [one[column] for column in ("step", *WHAT, "unit")]
            values = one["value"].groupby(keys, dropna=False, sort=False).agg(_mean).reset_index()
            status = np.where(values["value"].isna(), "missing", "ok")
            frames.append(values.assign(arm=arm.name, run=f"{arm.name}/{place}", status=status))
    return pd.concat(frames, ignore_index=True)


def notes(arms: Sequence[Arm], differences: pd.DataFrame) -> list[str]:
    """What a reader must know before believing a difference, most important first."""
    found = [*_unlike(arms)]
    few = {arm.name: len(arm.runs) for arm in arms}
    if min(few.values()) < 2:
        alone = ", ".join(name for name, count in few.items() if count < 2)
        found.append(
            f"One run only of {alone}: no interval is claimed, since a difference may be one of seeds. "
            "Train each arm with at least three seeds."
        )
    elif min(few.values()) < 5:
        found.append(
            f"Intervals over {min(few.values())} runs are rough, and usually too narrow: a bootstrap cannot draw "
            "what no run has shown."
        )
    return found + _multiplicity(differences) + _unshared(arms, differences)


def _unlike(arms: Sequence[Arm]) -> list[str]:
    """What run.json says is different between runs, beyond their seeds."""
    runs = [run for arm in arms for run in arm.runs]
    found = []
    for what, values in (
        ("data", [_recorded(run, "data").get("fingerprint") for run in runs]),
        ("order of the data", [_recorded(run, "data").get("order") for run in runs]),
        ("model", [dict(run.model) for run in runs]),
        ("method", [_recorded(run, "method") for run in runs]),
    ):
        if any(value != values[0] for value in values[1:]):
            words = "; ".join(f"{run.name}: {_said(value, values)}" for run, value in zip(runs, values, strict=True))
            found.append(f"The runs differ in {what} ({words}).")
    steps = sorted(set.intersection(*(set(run.steps) for run in runs)))
    tokens = {run.name: run.tokens(steps[-1]) for run in runs} if steps else {}
    if len(set(tokens.values())) > 1:
        words = ", ".join(f"{name} {count}" for name, count in tokens.items())
        found.append(f"At step {steps[-1]} the runs have read different numbers of tokens ({words}).")
    return found


def _recorded(run: Source, key: str) -> Any:
    """What run.json says; {} where the source has none."""
    return getattr(getattr(run, "manifest", None), key, {})


def _said(value: Any, values: list[Any]) -> str:
    """A value in words; of a mapping what is not the same everywhere."""
    if not isinstance(value, dict):
        return str(value)
    keys = [key for key in value if any(other.get(key) != value[key] for other in values)]
    return ", ".join(f"{key} {value[key]}" for key in keys)


def _multiplicity(differences: pd.DataFrame) -> list[str]:
    tested = differences[differences["status"] == "ok"]
    if tested.empty:
        return []
    outside = int(((tested["low"] > 0) | (tested["high"] < 0)).sum())
    chance = round((1 - LEVEL) * len(tested))
    sentence = (
        f"{len(tested):,} intervals of {LEVEL:.0%} each: if nothing differed, about {chance:,} would leave out 0 by "
        f"chance, and {outside:,} do. {_UNCORRECTED}"
    )
    return [sentence]


def _unshared(arms: Sequence[Arm], differences: pd.DataFrame) -> list[str]:
    shared = sorted(int(step) for step in differences["step"].dropna().unique())
    measured = {int(step) for arm in arms for table in arm.tables for step in table["step"].unique()}
    left = sorted(measured - set(shared))
    missing = int((differences["status"] == "missing").sum())
    return [
        *([f"Steps that not every run has were left out: {', '.join(map(str, left))}."] if left else []),
        *([f"{missing:,} differences have no value, since a run has none there."] if missing else []),
    ]


def write(differences: pd.DataFrame, parquet: Path, csv: Path) -> None:
    """The differences as a Parquet file and its CSV twin."""
    for path, save in ((parquet, differences.to_parquet), (csv, for_spreadsheets(differences).to_csv)):
        with replacing(path) as draft:
            save(draft, index=False)
