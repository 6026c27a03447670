"""Runs that lie far from the others of their arm, and arms of unequal scatter."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from pico_analyze.statistics.over_runs import deviation, divide, mean

ALPHA_OUTLIER = 0.01
"""Significance level at which a run is called an outlier."""


def outlier_p(values: Any) -> Any:
    """Compute how unlikely each run is if all runs of a cell came from one normal distribution.

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
    if runs < 3:  # the scatter of the others needs two of them
        return np.full(values.shape, np.nan)
    residuals = [_studentised_residual(values, run) for run in range(runs)]
    t = np.column_stack(residuals)
    two_sided_p = 2 * stats.t.sf(t, runs - 2)
    return np.minimum(runs * two_sided_p, 1)


def _studentised_residual(values: Any, run: int) -> Any:
    """Compute the distance of a run from the mean of the others in its standard errors."""
    largest = np.max(np.abs(values), axis=1)
    # The run itself is left out: a far one would widen the scatter that should expose it.
    others = np.delete(values, run, axis=1)
    distance = np.abs(values[:, run] - mean(others))
    # The distance varies with the run itself and with the mean of the others.
    scatter = deviation(others) * np.sqrt(1 + 1 / others.shape[1])
    is_rounding = distance <= 1e-12 * largest
    return np.where(is_rounding, 0.0, divide(distance, scatter))


def scatter_ratio(x: Any, y: Any) -> float:
    """Return the median over cells of sd(y) / sd(x).

    It is 1 if no cell has scatter in both arms or an arm has one run.
    """
    if min(x.shape[1], y.shape[1]) < 2:
        return 1.0
    scatter_x = np.std(x, axis=1, ddof=1)
    scatter_y = np.std(y, axis=1, ddof=1)
    both = (scatter_x > 0) & (scatter_y > 0)
    if not both.any():
        return 1.0
    return float(np.median(scatter_y[both] / scatter_x[both]))
