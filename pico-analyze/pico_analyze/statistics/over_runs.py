"""Moments of each cell over its runs, and division that may meet a zero."""

from __future__ import annotations

from typing import Any

import numpy as np


def mean(values: Any) -> Any:
    """Compute the mean of each row."""
    return values.mean(axis=1)


def variance(values: Any) -> Any:
    """Compute the unbiased variance of each row."""
    # ddof=1 because the mean comes from the same few runs.
    return values.var(axis=1, ddof=1)


def deviation(values: Any) -> Any:
    """Compute the standard deviation of each row, the root of `variance`."""
    return values.std(axis=1, ddof=1)


def divide(numerator: Any, denominator: Any) -> Any:
    """Divide without a warning: x / 0 is infinite and 0 / 0 is NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return numerator / denominator
