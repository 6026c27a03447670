"""Intervals of shares: k of n."""

from __future__ import annotations

import math

from scipy import stats

from pico_analyze.statistics.intervals import LEVEL


def wilson(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Compute the score interval of a share; it stays within 0 and 1 and is usable at 0 of n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is not a share")
    z = float(stats.norm.ppf((1 + level) / 2))
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high
