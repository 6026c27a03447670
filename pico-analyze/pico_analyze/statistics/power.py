"""Exact power of the t tests by the noncentral t distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize, stats

from pico_analyze.statistics.intervals import LEVEL

POWER = 0.8
"""Default power of an experiment: the convention of Cohen 1988, section 2.4."""
# Bounds of the searches below, which would not end for an effect of 0 or a power of 1.
_MOST_RUNS = 1_000_000
_LARGEST_EFFECT = 1e4
_QUADRATURE_NODES = 200


def power(effect: float, runs: int, paired: bool = True, level: float = LEVEL) -> float:
    """Compute the probability that a two-sided t test at `level` finds a true difference.

    A significant difference counts in either direction.

    Args:
        effect: the true difference in standard deviations: of the paired differences, or of each
            arm if not `paired`.
        runs: pairs, or runs of each arm; at least 2.
        paired: Student's t of the pairs; otherwise Welch's t of two arms with as many runs and the
            same scatter.
        level: confidence of the interval that would leave out 0.

    Welch's degrees of freedom vary between experiments, independently of the difference between
    means: the power is averaged over their distribution.

    Source: Cohen 1988, "Statistical power analysis for the behavioral sciences", section 2.2,
    without approximation.
    """
    if runs < 2:
        raise ValueError("a t test needs at least two runs")
    upper = (1 + level) / 2
    if paired:
        df = runs - 1
        shift = abs(effect) * math.sqrt(runs)
        return float(_beyond(stats.t.ppf(upper, df), df, shift))
    critical = stats.t.ppf(upper, _welch_df(runs))
    shift = abs(effect) * math.sqrt(runs / 2)
    return float(np.mean(_beyond(critical, 2 * runs - 2, shift)))


def _welch_df(runs: int) -> Any:
    """Compute Welch's degrees of freedom at the quantiles of their distribution.

    They are (n - 1) / (b^2 + (1 - b)^2) for a share b of the first arm in the two variances, which
    has a Beta((n - 1) / 2, (n - 1) / 2) distribution.
    """
    # Equal steps of probability: a plain mean over them averages over the distribution.
    quantiles = (np.arange(_QUADRATURE_NODES) + 0.5) / _QUADRATURE_NODES
    shape = (runs - 1) / 2
    share = stats.beta.ppf(quantiles, shape, shape)
    return (runs - 1) / (share**2 + (1 - share) ** 2)


def detectable_effect(
    runs: int, paired: bool = True, goal: float = POWER, level: float = LEVEL
) -> float:
    """Compute the true difference that a test finds with probability `goal`.

    It is in standard deviations, as in `power`.
    """

    def excess_power(effect: float) -> float:
        return power(effect, runs, paired, level) - goal

    high = 1.0
    while excess_power(high) < 0 and high < _LARGEST_EFFECT:
        high *= 2
    return float(optimize.brentq(excess_power, 0, high, xtol=1e-10))


def runs_needed(
    effect: float, paired: bool = True, goal: float = POWER, level: float = LEVEL
) -> int:
    """Find the least number of pairs, or of runs in each arm, that gives a power of `goal`.

    Raises:
        ValueError: an effect of 0, or one that a million runs would not find.
    """
    if effect == 0 or power(effect, _MOST_RUNS, paired, level) < goal:
        raise ValueError(
            f"an effect of {effect:g} standard deviations is too small to be found by any number of runs"
        )
    # Power grows with the runs, so doubling brackets the answer and halving finds it.
    low, high = 1, 2
    while power(effect, high, paired, level) < goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if power(effect, middle, paired, level) >= goal:
            high = middle
        else:
            low = middle
    return high


def _beyond(critical: Any, df: int, shift: float) -> Any:
    """Return the probability of |t| > `critical` for a noncentral t."""
    if shift == 0:
        return 2 * stats.t.sf(critical, df)
    lower_tail = stats.nct.cdf(-critical, df, shift)
    # scipy may give NaN for a lower tail that is 0 to rounding, as with a shift of 50.
    return stats.nct.sf(critical, df, shift) + np.nan_to_num(lower_tail)
