"""Power of the t tests, exactly, by the noncentral t distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize, stats

from pico_analyze.statistics.intervals import LEVEL

POWER = 0.8
"""Power aimed at, unless another is asked for."""
_MOST_RUNS = 1_000_000
_LARGEST_EFFECT = 1e4
_NODES = 200  # of the average over Welch's degrees of freedom


def power(effect: float, runs: int, paired: bool = True, level: float = LEVEL) -> float:
    """Compute the probability that a two-sided t test at `level` finds a true difference, in either
    direction.

    Args:
        effect: the true difference in standard deviations: of the paired differences, or of each
            arm if not `paired`.
        runs: pairs, or runs of each arm; at least 2.
        paired: Student's t of the pairs; otherwise Welch's t of two arms with as many runs and the
            same scatter.
        level: confidence of the interval that would leave out 0.

    Welch's degrees of freedom are (n - 1) / (b^2 + (1 - b)^2) for a share b of the first arm in the
    two variances. It has a Beta((n - 1) / 2, (n - 1) / 2) distribution, independent of t, over
    which the power is averaged.

    Source: Cohen 1988, "Statistical power analysis for the behavioral sciences", section 2.2,
    without approximation.
    """
    if runs < 2:
        raise ValueError("a t test needs at least two runs")
    if paired:
        return float(
            _beyond(stats.t.ppf((1 + level) / 2, runs - 1), runs - 1, abs(effect) * math.sqrt(runs))
        )
    share = stats.beta.ppf((np.arange(_NODES) + 0.5) / _NODES, (runs - 1) / 2, (runs - 1) / 2)
    critical = stats.t.ppf((1 + level) / 2, (runs - 1) / (share**2 + (1 - share) ** 2))
    return float(np.mean(_beyond(critical, 2 * runs - 2, abs(effect) * math.sqrt(runs / 2))))


def detectable_effect(
    runs: int, paired: bool = True, goal: float = POWER, level: float = LEVEL
) -> float:
    """Compute the true difference, in standard deviations as in `power`, that is found with
    probability `goal`."""

    def missing(effect: float) -> float:
        return power(effect, runs, paired, level) - goal

    high = 1.0
    while missing(high) < 0 and high < _LARGEST_EFFECT:
        high *= 2
    return float(optimize.brentq(missing, 0, high, xtol=1e-10))


def runs_needed(
    effect: float, paired: bool = True, goal: float = POWER, level: float = LEVEL
) -> int:
    """Find the least number of pairs, or of runs in each arm, whose power for `effect` is at least
    `goal`.

    Raises:
        ValueError: an effect of 0, or one that a million runs would not find.
    """
    if effect == 0 or power(effect, _MOST_RUNS, paired, level) < goal:
        raise ValueError(
            f"an effect of {effect:g} standard deviations is too small to be found by any number of runs"
        )
    low, high = 1, 2
    while power(effect, high, paired, level) < goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if power(effect, middle, paired, level) >= goal else (middle, high)
        )
    return high


def _beyond(critical: Any, df: int, shift: float) -> Any:
    """Return the probability of |t| > `critical` for a noncentral t."""
    if shift == 0:
        return 2 * stats.t.sf(critical, df)
    return stats.nct.sf(critical, df, shift) + np.nan_to_num(stats.nct.cdf(-critical, df, shift))
