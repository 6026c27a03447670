"""Outliers among the runs of an arm, and the ratio of scatter between arms."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

ALPHA_OUTLIER = 0.01
"""The level at which a run is called an outlier."""
_NO_DISTANCE = 1e-12
"""A run this close to the mean of the others, relative to the values, differs only by rounding."""


def outlier_p(values: Any) -> Any:
    """Compute the p-value of each run if all runs of a cell came from one normal distribution.

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
    p = np.full(values.shape, np.nan)
    if runs < 3:
        return p
    for run in range(runs):
        two_sided = 2 * stats.t.sf(_studentised(values, run), runs - 2)
        p[:, run] = np.minimum(runs * two_sided, 1)
    p[np.isnan(values).any(axis=1)] = np.nan
    return p


def _studentised(values: Any, run: int) -> Any:
    """Compute the distance of a run from the mean of the others in standard errors: (cells,)."""
    # Included in the scatter, an outlier would hide itself.
    others = np.delete(values, run, axis=1)
    distance = np.abs(values[:, run] - others.mean(axis=1))
    scatter = others.std(axis=1, ddof=1) * np.sqrt(1 + 1 / others.shape[1])
    negligible = distance <= _NO_DISTANCE * np.abs(values).max(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(negligible, 0.0, distance / scatter)


def scatter_ratio(x: Any, y: Any) -> float:
    """Compute the median over cells of sd(y) / sd(x).

    It is 1 if no cell has scatter in both arms, or if an arm has only one run.
    """
    fewest = min(x.shape[1], y.shape[1])
    if fewest < 2:
        return 1.0
    sd_x = np.std(x, axis=1, ddof=1)
    sd_y = np.std(y, axis=1, ddof=1)
    have_scatter = (sd_x > 0) & (sd_y > 0)
    if not have_scatter.any():
        return 1.0
    ratios = sd_y[have_scatter] / sd_x[have_scatter]
    return float(np.median(ratios))
