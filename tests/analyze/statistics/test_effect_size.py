"""Hedges' g against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from pico_analyze.statistics import hedges_g


def test_effect_size_is_hedges_g() -> None:
    x, y = np.array([[1.0, 2.0, 3.0]]), np.array([[3.0, 4.0, 5.0, 8.0]])
    pooled = np.sqrt((2 * 1.0 + 3 * np.var(y, ddof=1)) / 5)
    assert hedges_g(x, y)[0] == pytest.approx(3.0 / pooled * (1 - 3 / 19))
    assert np.isnan(hedges_g(np.ones((1, 3)), np.ones((1, 3)))[0]), "no run differs from another"
    assert np.isnan(hedges_g(np.ones((1, 1)), np.ones((1, 3)))[0])
