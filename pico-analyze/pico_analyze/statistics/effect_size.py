"""Standardised differences between arms."""

from __future__ import annotations

from typing import Any

import numpy as np

from pico_analyze.statistics.over_runs import divide, mean, variance


def hedges_g(x: Any, y: Any) -> Any:
    """Compute the difference of each row in pooled standard deviations, corrected for few runs.

    With the pooled standard deviation s it is (mean(y) - mean(x)) / s * (1 - 3 / (4 (n + m) - 9)).

    Args:
        x: (cells, n) and y: (cells, m), one column a run.

    Returns:
        (cells,), NaN if an arm has one run, and for a cell whose runs all agree.

    Source: Hedges 1981, "Distribution theory for Glass's estimator of effect size and related
    estimators", eq. 6e.
    """
    n, m = x.shape[1], y.shape[1]
    if min(n, m) < 2:
        return np.full(len(x), np.nan)
    pooled = _pooled_deviation(x, y)
    difference = mean(y) - mean(x)
    # Without it the effect is too large on average, by a quarter at three runs in each arm.
    correction = 1 - 3 / (4 * (n + m) - 9)
    g = divide(difference, pooled) * correction
    return np.where(pooled > 0, g, np.nan)


def _pooled_deviation(x: Any, y: Any) -> Any:
    df_x = x.shape[1] - 1
    df_y = y.shape[1] - 1
    squares = df_x * variance(x) + df_y * variance(y)
    return np.sqrt(squares / (df_x + df_y))
