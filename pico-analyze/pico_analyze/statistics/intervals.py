"""Confidence intervals of a difference between two means over runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pico_analyze.statistics.over_runs import deviation, divide, mean, variance

LEVEL = 0.95
"""Default confidence of an interval."""
LEAST_BOOTSTRAP_RUNS = 10
"""Fewest runs of an arm for a bootstrap: with fewer its intervals are far too narrow."""
BOOTSTRAP_DRAWS = 2000
# A bootstrap holds _CELLS_AT_ONCE x BOOTSTRAP_DRAWS numbers in memory, however many cells it has.
_CELLS_AT_ONCE = 2000


@dataclass(frozen=True)
class Interval:
    """Confidence interval of mean(y) - mean(x) for every cell.

    Attributes:
        method: `student_pairs`, `welch` or `bootstrap`.
        low, high: (cells,) the bounds; NaN where a value is missing.
        error: (cells,) standard error of the difference.
        df: (cells,) degrees of freedom; NaN for a bootstrap.
        p: (cells,) two-sided p-value of a difference of 0; NaN for a bootstrap.
    """

    method: str
    low: Any
    high: Any
    error: Any
    df: Any
    p: Any


def student_pairs(x: Any, y: Any, level: float = LEVEL) -> Interval:
    """Compute Student's t interval of the mean difference y - x of paired runs.

    It assumes that the differences of the pairs are normal and independent; a scatter that both
    runs of a pair share cancels.

    Args:
        x, y: (cells, pairs), with column i of both being one pair; at least two pairs.
        level: confidence of the interval.

    Source: Student 1908, "The probable error of a mean".
    """
    differences = np.asarray(y, dtype=float) - np.asarray(x, dtype=float)
    pairs = _at_least_two(differences)
    error = deviation(differences) / np.sqrt(pairs)
    df = np.full(len(differences), pairs - 1.0)
    return _from_t("student_pairs", mean(differences), error, df, level)


def welch(x: Any, y: Any, level: float = LEVEL) -> Interval:
    """Compute Welch's t interval of mean(y) - mean(x) for independent runs.

    It assumes that the runs of each arm are normal; the two arms may differ in scatter.

    Args:
        x: (cells, n) and y: (cells, m), with at least two runs each.
        level: confidence of the interval.

    Source: Welch 1947, "The generalization of Student's problem when several different population
    variances are involved"; the degrees of freedom are those of Satterthwaite 1946.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n, m = _at_least_two(x), _at_least_two(y)
    squared_error_x = variance(x) / n
    squared_error_y = variance(y) / m
    df = _satterthwaite(squared_error_x, n - 1, squared_error_y, m - 1)
    error = np.sqrt(squared_error_x + squared_error_y)
    return _from_t("welch", mean(y) - mean(x), error, df, level)


def _satterthwaite(squared_error_x: Any, df_x: int, squared_error_y: Any, df_y: int) -> Any:
    """Compute the degrees of freedom of a difference between two means."""
    total = squared_error_x + squared_error_y
    df = divide(total**2, squared_error_x**2 / df_x + squared_error_y**2 / df_y)
    # Without scatter the formula is 0 / 0: take those of a test with a common variance.
    return np.where(total == 0, df_x + df_y + 0.0, df)


def bootstrap(x: Any, y: Any, paired: bool, seed: int = 0, level: float = LEVEL) -> Interval:
    """Compute the percentile bootstrap interval of mean(y) - mean(x).

    It resamples runs `BOOTSTRAP_DRAWS` times and assumes no distribution.

    Args:
        x: (cells, n) and y: (cells, m), with at least `LEAST_BOOTSTRAP_RUNS` runs each.
        paired: resample column i of both together.
        seed: seed of the resampling.
        level: confidence of the interval.

    Raises:
        ValueError: too few runs.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if min(x.shape[1], y.shape[1]) < LEAST_BOOTSTRAP_RUNS:
        raise ValueError(f"a bootstrap needs at least {LEAST_BOOTSTRAP_RUNS} runs in each arm")
    low, high, error = np.full((3, len(x)), np.nan)
    for block, differences in _resampled_differences(x, y, paired, seed):
        low[block], high[block] = _percentiles(differences, level)
        error[block] = deviation(differences)
    missing = np.full(len(x), np.nan)
    return Interval("bootstrap", low, high, error, df=missing, p=missing)


def _resampled_differences(
    x: Any, y: Any, paired: bool, seed: int
) -> Iterator[tuple[slice, Any]]:
    """Yield blocks of cells, each with its differences: (cells, BOOTSTRAP_DRAWS)."""
    generator = np.random.default_rng(seed)
    # All cells share the same resamples, because they come from the same runs.
    weights_x = _resample_weights(generator, x.shape[1])
    weights_y = weights_x if paired else _resample_weights(generator, y.shape[1])
    for start in range(0, len(x), _CELLS_AT_ONCE):
        block = slice(start, start + _CELLS_AT_ONCE)
        yield block, y[block] @ weights_y - x[block] @ weights_x


def _percentiles(differences: Any, level: float) -> Any:
    tail = 50 * (1 - level)
    return np.percentile(differences, [tail, 100 - tail], axis=1)


def _resample_weights(generator: np.random.Generator, runs: int) -> Any:
    """Draw the weight of each run in the mean of each resample: (runs, BOOTSTRAP_DRAWS)."""
    drawn = generator.integers(runs, size=(BOOTSTRAP_DRAWS, runs))
    is_run = drawn[:, :, None] == np.arange(runs)
    return is_run.mean(axis=1).T


def _from_t(method: str, difference: Any, error: Any, df: Any, level: float) -> Interval:
    half_width = stats.t.ppf((1 + level) / 2, df) * error
    low = difference - half_width
    high = difference + half_width
    return Interval(method, low, high, error, df, _two_sided_p(difference, error, df))


def _two_sided_p(difference: Any, error: Any, df: Any) -> Any:
    t = divide(np.abs(difference), error)
    p = 2 * stats.t.sf(t, df)
    p = np.where(difference == 0, 1.0, p)  # 0 / 0: no scatter and no difference
    return np.where(np.isnan(difference), np.nan, p)


def _at_least_two(values: Any) -> int:
    # One run has no scatter, and without scatter there is no standard error.
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError("an interval needs (cells, runs) with at least two runs in each arm")
    return int(values.shape[1])
