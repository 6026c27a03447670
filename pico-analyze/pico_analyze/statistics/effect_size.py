"""Standardised differences between arms."""

from __future__ import annotations

from typing import Any

import numpy as np


def hedges_g(x: Any, y: Any) -> Any:
    """Compute (mean(y) - mean(x)) / s * (1 - 3 / (4 (n + m) - 9)) of each row, s being the pooled
    standard deviation.

    Args:
        x: (cells, n) and y: (cells, m), one column a run.

    Returns:
        (cells,), NaN where an arm has one run or no run differs from another.

    Source: Hedges 1981, "Distribution theory for Glass's estimator of effect size and related
    estimators", eq. 6e.
    """
    n, m = x.shape[1], y.shape[1]
    if min(n, m) < 2:
        return np.full(len(x), np.nan)
    pooled = np.sqrt(
        ((n - 1) * x.var(axis=1, ddof=1) + (m - 1) * y.var(axis=1, ddof=1)) / (n + m - 2)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        g = (y.mean(axis=1) - x.mean(axis=1)) / pooled * (1 - 3 / (4 * (n + m) - 9))
    return np.where(pooled > 0, g, np.nan)
