"""Confidence intervals of a proportion."""

from __future__ import annotations

import math

from scipy import stats

from pico_analyze.statistics.intervals import LEVEL


def wilson(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Compute the score interval of a proportion.

    It stays within 0 and 1, and has a positive width even at 0 of n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is not a share")
    z = float(stats.norm.ppf((1 + level) / 2))
    low, high = _score_bounds(successes / trials, trials, z)
    # The formula gives exactly 0 and 1 at these ends; floating-point arithmetic does not.
    if successes == 0:
        low = 0.0
    if successes == trials:
        high = 1.0
    return low, high


def _score_bounds(share: float, trials: int, z: float) -> tuple[float, float]:
    spread = z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    binomial_variance = share * (1 - share) / trials
    correction = spread / (4 * trials)
    half_width = z * math.sqrt(binomial_variance + correction) / (1 + spread)
    return centre - half_width, centre + half_width
