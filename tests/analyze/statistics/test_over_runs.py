"""Moments over runs: closed forms, invariance under shifts, and division by zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pico_analyze.statistics import over_runs

VALUES = np.array([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])


def test_moments_of_each_row_by_hand() -> None:
    assert over_runs.mean(VALUES).tolist() == [3.0, 4.0]
    assert over_runs.variance(VALUES).tolist() == [7.0, 0.0], "((-2)^2 + (-1)^2 + 3^2) / 2"
    assert over_runs.deviation(VALUES) == pytest.approx([math.sqrt(7.0), 0.0])


def test_a_shift_moves_the_mean_alone() -> None:
    shifted = VALUES + 5.0
    assert (over_runs.mean(shifted) - over_runs.mean(VALUES)).tolist() == [5.0, 5.0]
    assert over_runs.variance(shifted) == pytest.approx(over_runs.variance(VALUES))


def test_a_quotient_by_zero_is_infinite_or_nothing_and_warns_of_nothing() -> None:
    """The suite turns warnings into errors, so that a warning would fail here."""
    found = over_runs.divide(np.array([1.0, -1.0, 0.0, 6.0]), np.array([0.0, 0.0, 0.0, 3.0]))
    assert found[:2].tolist() == [math.inf, -math.inf]
    assert math.isnan(found[2])
    assert found[3] == 2.0
