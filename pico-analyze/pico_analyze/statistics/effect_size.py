"""Standardised differences between arms."""

from __future__ import annotations

from typing import Any

import numpy as np


def hedges_g(x: Any, y: Any) -> Any:
    """Compute Hedges' g of each cell: (mean(y) - mean(x)) / s * (1 - 3 / (4 (n + m) - 9)).

    s is the pooled standard deviation; the last factor corrects the bias of few runs.

    Args:
        x: (cells, n), one column a run.
        y: (cells, m).

    Returns:
        (cells,), NaN if an arm has only one run, or if all runs of each arm are equal.

    Source: Hedges 1981, "Distribution theory for Glass's estimator of effect size and related
    estimators", eq. 6e.
    """
    cells, n = x.shape
    _, m = y.shape
    if min(n, m) < 2:
        return np.full(cells, np.nan)
    df = n + m - 2
    squares_x = (n - 1) * x.var(axis=1, ddof=1)
    squares_y = (m - 1) * y.var(axis=1, ddof=1)
    variance = (squares_x + squares_y) / df
    pooled = np.sqrt(variance)
    mean_x = x.mean(axis=1)
    mean_y = y.mean(axis=1)
    correction = 1 - 3 / (4 * df - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        g = (mean_y - mean_x) / pooled * correction
    return np.where(pooled > 0, g, np.nan)
