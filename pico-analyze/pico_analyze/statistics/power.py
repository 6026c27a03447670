"""Power of the t tests, exactly, by the noncentral t distribution."""

from __future__ import annotations

import math

from scipy import optimize, stats

from pico_analyze.statistics.intervals import LEVEL

POWER = 0.8
"""Power aimed at, unless another is asked for."""
_MOST_RUNS = 1_000_000
_LARGEST_EFFECT = 1e4


def power(effect: float, runs: int, paired: bool = True, level: float = LEVEL) -> float:
    """Compute the probability that a two-sided t test at `level` finds a true difference, in either direction.

    Args:
        effect: the true difference in standard deviations: of the paired differences, or of each arm if not `paired`.
        runs: pairs, or runs of each arm; at least 2.
        paired: Student's t of the pairs; otherwise of two arms with as many runs and the same scatter.
        level: confidence of the interval that would leave out 0.

    Source: Cohen 1988, "Statistical power analysis for the behavioral sciences", section 2.2, without approximation.
    """
    if runs < 2:
        raise ValueError("a t test needs at least two runs")
    df = runs - 1 if paired else 2 * runs - 2
    shift = abs(effect) * math.sqrt(runs if paired else runs / 2)
    critical = stats.t.ppf((1 + level) / 2, df)
    beyond = stats.nct.sf(critical, df, shift)
    return float(beyond + stats.t.sf(critical, df)) if shift == 0 else float(beyond + _opposite(critical, df, shift))


def detectable_effect(runs: int, paired: bool = True, goal: float = POWER, level: float = LEVEL) -> float:
    """Compute the true difference, in standard deviations as in `power`, that is found with probability `goal`."""

    def missing(effect: float) -> float:
        return power(effect, runs, paired, level) - goal

    high = 1.0
    while missing(high) < 0 and high < _LARGEST_EFFECT:
        high *= 2
    return float(optimize.brentq(missing, 0, high, xtol=1e-10))


def runs_needed(effect: float, paired: bool = True, goal: float = POWER, level: float = LEVEL) -> int:
    """Find the least number of pairs, or of runs in each arm, whose power for `effect` is at least `goal`.

    Raises:
        ValueError: an effect of 0, or one that a million runs would not find.
    """
    if effect == 0 or power(effect, _MOST_RUNS, paired, level) < goal:
        raise ValueError(f"an effect of {effect:g} standard deviations is too small to be found by any number of runs")
    low, high = 1, 2
    while power(effect, high, paired, level) < goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, paired, level) >= goal else (middle, high)
    return high


def _opposite(critical: float, df: int, shift: float) -> float:
    """Return the probability of a significant difference in the wrong direction; 0 where it underflows."""
    found = float(stats.nct.cdf(-critical, df, shift))
    return found if math.isfinite(found) else 0.0
