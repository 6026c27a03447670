"""Confidence intervals of a difference between two means over runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Confidence of an interval, unless another is asked for."""
LEAST_BOOTSTRAP_RUNS = 10
"""Runs of an arm from which on a bootstrap may be used: with fewer its intervals are far too
narrow."""
BOOTSTRAP_DRAWS = 2000
_CELLS_AT_ONCE = (
    2000  # bounds the memory of a bootstrap to _CELLS_AT_ONCE x BOOTSTRAP_DRAWS numbers
)


@dataclass(frozen=True)
class Interval:
    """Bounds of mean(y) - mean(x), one of each for every cell.

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

    Args:
        x, y: (cells, pairs), with column i of both being one pair; at least two pairs.
        level: confidence of the interval.

    Source: Student 1908, "The probable error of a mean".
    """
    differences = np.asarray(y, dtype=float) - np.asarray(x, dtype=float)
    pairs = _at_least_two(differences)
    error = differences.std(axis=1, ddof=1) / np.sqrt(pairs)
    df = np.full(len(differences), pairs - 1.0)
    return _from_t("student_pairs", differences.mean(axis=1), error, df, level)


def welch(x: Any, y: Any, level: float = LEVEL) -> Interval:
    """Compute Welch's t interval of mean(y) - mean(x) for independent runs with scatters that may
    differ.

    Args:
        x: (cells, n) and y: (cells, m), with at least two runs each.
        level: confidence of the interval.

    Source: Welch 1947, "The generalization of Student's problem when several different population
    variances are involved"; the degrees of freedom are those of Satterthwaite 1946.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n, m = _at_least_two(x), _at_least_two(y)
    of_x, of_y = x.var(axis=1, ddof=1) / n, y.var(axis=1, ddof=1) / m
    with np.errstate(invalid="ignore", divide="ignore"):
        df = (of_x + of_y) ** 2 / (of_x**2 / (n - 1) + of_y**2 / (m - 1))
    df = np.where(of_x + of_y == 0, n + m - 2.0, df)
    return _from_t("welch", y.mean(axis=1) - x.mean(axis=1), np.sqrt(of_x + of_y), df, level)


def bootstrap(x: Any, y: Any, paired: bool, seed: int = 0, level: float = LEVEL) -> Interval:
    """Compute the percentile bootstrap interval of mean(y) - mean(x), with runs resampled
    `BOOTSTRAP_DRAWS` times.

    Args:
        x: (cells, n) and y: (cells, m), with at least `LEAST_BOOTSTRAP_RUNS` runs each.
        paired: resample column i of both together.
        seed: of the resampling.
        level: confidence of the interval.

    Raises:
        ValueError: too few runs.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if min(x.shape[1], y.shape[1]) < LEAST_BOOTSTRAP_RUNS:
        raise ValueError(f"a bootstrap needs at least {LEAST_BOOTSTRAP_RUNS} runs in each arm")
    generator = np.random.default_rng(seed)
    of_x = _weights(generator, x.shape[1])
    of_y = of_x if paired else _weights(generator, y.shape[1])
    low, high, error = (np.full(len(x), np.nan) for _ in range(3))
    tail = 50 * (1 - level)
    for start in range(0, len(x), _CELLS_AT_ONCE):
        part = slice(start, start + _CELLS_AT_ONCE)
        drawn = y[part] @ of_y - x[part] @ of_x
        low[part], high[part] = np.percentile(drawn, [tail, 100 - tail], axis=1)
        error[part] = drawn.std(axis=1, ddof=1)
    absent = np.full(len(x), np.nan)
    return Interval("bootstrap", low, high, error, absent, absent)


def _weights(generator: np.random.Generator, runs: int) -> Any:
    """Draw the weight of each run in the mean of each resample: (runs, BOOTSTRAP_DRAWS)."""
    drawn = generator.integers(runs, size=(BOOTSTRAP_DRAWS, runs))
    return (drawn[:, :, None] == np.arange(runs)).mean(axis=1).T


def _from_t(method: str, difference: Any, error: Any, df: Any, level: float) -> Interval:
    half = stats.t.ppf((1 + level) / 2, df) * error
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * stats.t.sf(np.abs(difference) / error, df)
    p = np.where(difference == 0, 1.0, p)  # 0 / 0: no scatter and no difference
    return Interval(
        method,
        difference - half,
        difference + half,
        error,
        df,
        np.where(np.isnan(difference), np.nan, p),
    )


def _at_least_two(values: Any) -> int:
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError("an interval needs (cells, runs) with at least two runs in each arm")
    return int(values.shape[1])
