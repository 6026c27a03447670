"""Runs that lie far from the others of their arm, and arms of unequal scatter."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

ALPHA_OUTLIER = 0.01
"""Level at which a run is called an outlier."""


def outlier_p(values: Any) -> Any:
    """Compute how unlikely each run is, if all runs of a cell came from one normal distribution.

    Each run is judged by the mean and the scatter of the others (the externally studentised
    residual), and p is multiplied by the number of runs (Bonferroni), so that one number serves for
    three runs and for thirty.

    Args:
        values: (cells, runs).

    Returns:
        (cells, runs), at most 1; NaN with fewer than three runs or a missing value.

    Source: Cook & Weisberg 1982, "Residuals and influence in regression", section 2.2.2.
    """
    values = np.asarray(values, dtype=float)
    runs = values.shape[1]
    found = np.full(values.shape, np.nan)
    if runs < 3:
        return found
    size = np.abs(values).max(axis=1)
    for run in range(runs):
        others = np.delete(values, run, axis=1)
        apart = np.abs(values[:, run] - others.mean(axis=1))
        scatter = others.std(axis=1, ddof=1) * np.sqrt(1 + 1 / (runs - 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.where(apart <= 1e-12 * size, 0.0, apart / scatter)
        found[:, run] = np.minimum(2 * runs * stats.t.sf(t, runs - 2), 1)
    found[np.isnan(values).any(axis=1)] = np.nan
    return found


def scatter_ratio(x: Any, y: Any) -> float:
    """Return the median over cells of sd(y) / sd(x), 1 where no cell has scatter in both arms or an
    arm has one run."""
    if min(x.shape[1], y.shape[1]) < 2:
        return 1.0
    of_x, of_y = np.std(x, axis=1, ddof=1), np.std(y, axis=1, ddof=1)
    both = (of_x > 0) & (of_y > 0)
    return float(np.median(of_y[both] / of_x[both])) if both.any() else 1.0
