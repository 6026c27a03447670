"""Confidence intervals of shares, k of n."""

from __future__ import annotations

import math

from scipy import stats

from pico_analyze.statistics.intervals import LEVEL


def wilson(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Compute Wilson's score interval of a share.

    Unlike the normal interval it stays within 0 and 1, and is usable at 0 of n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is not a share")
    quantile = (1 + level) / 2
    z = float(stats.norm.ppf(quantile))
    share = successes / trials
    shrinkage = z * z / trials
    scale = 1 + shrinkage
    centre = (share + shrinkage / 2) / scale
    variance = share * (1 - share) / trials
    variance += shrinkage / (4 * trials)
    half = z * math.sqrt(variance) / scale
    low = centre - half
    high = centre + half
    # At the ends the bounds are exactly 0 and 1, but rounding would move them.
    if successes == 0:
        low = 0.0
    if successes == trials:
        high = 1.0
    return low, high
