"""Exact power of the t tests, by the noncentral t distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize, stats

from pico_analyze.statistics.intervals import LEVEL

POWER = 0.8
"""The default power of a study."""
_MOST_RUNS = 1_000_000
_LARGEST_EFFECT = 1e4
_NODES = 200  # points of the average over Welch's degrees of freedom


def power(effect: float, runs: int, paired: bool = True, level: float = LEVEL) -> float:
    """Compute the probability that a two-sided t test finds a true difference.

    Args:
        effect: the true difference in standard deviations of the paired differences, or of each arm
            if not `paired`.
        runs: the number of pairs, or of runs in each arm; at least 2.
        paired: Student's t of the pairs; otherwise Welch's t of two arms with equally many runs and
            the same scatter.
        level: the confidence of the interval that would exclude 0.

    Welch's degrees of freedom are (n - 1) / (b^2 + (1 - b)^2) for a share b of the first arm in the
    two variances. It has a Beta((n - 1) / 2, (n - 1) / 2) distribution, independent of t, over
    which the power is averaged.

    Source: Cohen 1988, "Statistical power analysis for the behavioral sciences", section 2.2,
    without approximation.
    """
    if runs < 2:
        raise ValueError("a t test needs at least two runs")
    quantile = (1 + level) / 2
    if paired:
        df = runs - 1
        shift = abs(effect) * math.sqrt(runs)
        critical = stats.t.ppf(quantile, df)
        probability = _beyond(critical, df, shift)
        return float(probability)
    shift = abs(effect) * math.sqrt(runs / 2)
    welch_df = _welch_df(runs)
    critical = stats.t.ppf(quantile, welch_df)
    powers = _beyond(critical, 2 * runs - 2, shift)
    return float(np.mean(powers))


def _welch_df(runs: int) -> Any:
    """Compute equally probable degrees of freedom of Welch's t: (_NODES,)."""
    half_df = (runs - 1) / 2
    probabilities = (np.arange(_NODES) + 0.5) / _NODES
    share = stats.beta.ppf(probabilities, half_df, half_df)
    return (runs - 1) / (share**2 + (1 - share) ** 2)


def detectable_effect(
    runs: int, paired: bool = True, goal: float = POWER, level: float = LEVEL
) -> float:
    """Compute the true difference that is found with probability `goal`, in units of `power`."""

    def missing(effect: float) -> float:
        return power(effect, runs, paired, level) - goal

    high = 1.0
    # brentq needs a change of sign between 0 and `high`.
    while missing(high) < 0 and high < _LARGEST_EFFECT:
        high *= 2
    return float(optimize.brentq(missing, 0, high, xtol=1e-10))


def runs_needed(
    effect: float, paired: bool = True, goal: float = POWER, level: float = LEVEL
) -> int:
    """Compute the least number of pairs, or of runs in each arm, with power `goal` for `effect`.

    Raises:
        ValueError: an effect of 0, or one that a million runs would not find.
    """
    if effect == 0 or power(effect, _MOST_RUNS, paired, level) < goal:
        raise ValueError(
            f"an effect of {effect:g} standard deviations is too small to be found by any number of runs"
        )
    too_few, enough = 1, 2
    # Power grows with the number of runs: double it, then bisect.
    while power(effect, enough, paired, level) < goal:
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if power(effect, middle, paired, level) >= goal:
            enough = middle
        else:
            too_few = middle
    return enough


def _beyond(critical: Any, df: int, shift: float) -> Any:
    """Compute the probability of |t| > `critical` for a noncentral t."""
    if shift == 0:
        return 2 * stats.t.sf(critical, df)
    upper = stats.nct.sf(critical, df, shift)
    # scipy may give NaN for a lower tail that is too small for it.
    lower = np.nan_to_num(stats.nct.cdf(-critical, df, shift))
    return upper + lower
