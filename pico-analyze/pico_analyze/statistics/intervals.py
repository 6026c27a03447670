"""Confidence intervals of a difference between two means over runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
"""The default confidence level of an interval."""
LEAST_BOOTSTRAP_RUNS = 10
"""The fewest runs of an arm for a bootstrap; with fewer its intervals are far too narrow."""
BOOTSTRAP_DRAWS = 2000
_CELLS_AT_ONCE = 2000  # a bootstrap holds _CELLS_AT_ONCE x BOOTSTRAP_DRAWS numbers in memory


@dataclass(frozen=True)
class Interval:
    """Confidence intervals of mean(y) - mean(x), one for each cell.

    Attributes:
        method: `student_pairs`, `welch` or `bootstrap`.
        low, high: (cells,), the bounds; NaN if a value is missing.
        error: (cells,), the standard error of the difference.
        df: (cells,), the degrees of freedom; NaN for a bootstrap.
        p: (cells,), the two-sided p-value of a difference of 0; NaN for a bootstrap.
    """

    method: str
    low: Any
    high: Any
    error: Any
    df: Any
    p: Any


def student_pairs(x: Any, y: Any, level: float = LEVEL) -> Interval:
    """Compute Student's t interval of the mean difference y - x of paired runs.

    Args:
        x, y: (cells, pairs), with at least two pairs; column i of both is one pair.
        level: the confidence of the interval.

    Source: Student 1908, "The probable error of a mean".
    """
    differences = np.asarray(y, dtype=float) - np.asarray(x, dtype=float)
    pairs = _at_least_two(differences)
    # The pair is the unit: scatter common to both runs of a pair cancels.
    error = differences.std(axis=1, ddof=1) / np.sqrt(pairs)
    df = np.full(len(differences), pairs - 1.0)
    return _from_t("student_pairs", differences.mean(axis=1), error, df, level)


def welch(x: Any, y: Any, level: float = LEVEL) -> Interval:
    """Compute Welch's t interval of mean(y) - mean(x) for independent runs.

    The arms may differ in scatter.

    Args:
        x: (cells, n), with at least two runs.
        y: (cells, m), with at least two runs.
        level: the confidence of the interval.

    Source: Welch 1947, "The generalization of Student's problem when several different population
    variances are involved"; the degrees of freedom are those of Satterthwaite 1946.
    """
    x = np.asarray(x, dtype=float)
    y = np.asarray(y, dtype=float)
    n = _at_least_two(x)
    m = _at_least_two(y)
    # Variances of the two means and of their difference
    variance_x = x.var(axis=1, ddof=1) / n
    variance_y = y.var(axis=1, ddof=1) / m
    variance = variance_x + variance_y
    denominator_x = variance_x**2 / (n - 1)
    denominator_y = variance_y**2 / (m - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = variance**2 / (denominator_x + denominator_y)
    # Without scatter df is 0 / 0; any value serves.
    df = np.where(variance == 0, n + m - 2.0, df)
    difference = y.mean(axis=1) - x.mean(axis=1)
    error = np.sqrt(variance)
    return _from_t("welch", difference, error, df, level)


def bootstrap(x: Any, y: Any, paired: bool, seed: int = 0, level: float = LEVEL) -> Interval:
    """Compute the percentile bootstrap interval of mean(y) - mean(x).

    Runs are resampled `BOOTSTRAP_DRAWS` times.

    Args:
        x: (cells, n), with at least `LEAST_BOOTSTRAP_RUNS` runs.
        y: (cells, m), with at least `LEAST_BOOTSTRAP_RUNS` runs.
        paired: whether to resample column i of both together.
        seed: the seed of the resampling.
        level: the confidence of the interval.

    Raises:
        ValueError: too few runs.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    x = np.asarray(x, dtype=float)
    y = np.asarray(y, dtype=float)
    cells, n = x.shape
    _, m = y.shape
    if min(n, m) < LEAST_BOOTSTRAP_RUNS:
        raise ValueError(f"a bootstrap needs at least {LEAST_BOOTSTRAP_RUNS} runs in each arm")
    generator = np.random.default_rng(seed)
    weights_x = _weights(generator, n)
    weights_y = weights_x if paired else _weights(generator, m)
    tail = 50 * (1 - level)
    percentiles = [tail, 100 - tail]
    low, high, error = np.full((3, cells), np.nan)
    for start in range(0, cells, _CELLS_AT_ONCE):
        end = start + _CELLS_AT_ONCE
        block = slice(start, end)
        means_x = x[block] @ weights_x
        means_y = y[block] @ weights_y
        differences = means_y - means_x
        low[block], high[block] = np.percentile(differences, percentiles, axis=1)
        error[block] = differences.std(axis=1, ddof=1)
    undefined = np.full(cells, np.nan)
    return Interval("bootstrap", low, high, error, df=undefined, p=undefined)


def _weights(generator: np.random.Generator, runs: int) -> Any:
    """Draw resamples as weights of the runs in their mean: (runs, BOOTSTRAP_DRAWS).

    A matrix product then gives the means of all cells.
    """
    drawn = generator.integers(runs, size=(BOOTSTRAP_DRAWS, runs))
    is_drawn = drawn[:, :, None] == np.arange(runs)
    return is_drawn.mean(axis=1).T


def _from_t(method: str, difference: Any, error: Any, df: Any, level: float) -> Interval:
    half = stats.t.ppf((1 + level) / 2, df) * error
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * stats.t.sf(np.abs(difference) / error, df)
    p = np.where(difference == 0, 1.0, p)  # 0 / 0 without scatter and difference
    p = np.where(np.isnan(difference), np.nan, p)
    return Interval(method, difference - half, difference + half, error, df, p)


def _at_least_two(values: Any) -> int:
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError("an interval needs (cells, runs) with at least two runs in each arm")
    return int(values.shape[1])
