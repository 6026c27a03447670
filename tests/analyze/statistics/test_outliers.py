"""Which runs stand out, and how often by chance."""

from __future__ import annotations

import numpy as np
import pytest
from pico_analyze.statistics import outlier_p, scatter_ratio
from scipy import stats


def test_an_outlier_is_judged_by_the_others() -> None:
    values = np.array([[1.0, 1.1, 0.9, 1.05, 9.0]])
    others = values[0, :4]
    t = (9 - others.mean()) / (others.std(ddof=1) * np.sqrt(1 + 1 / 4))
    found = outlier_p(values)
    assert found[0, 4] == pytest.approx(2 * 5 * stats.t.sf(t, 3))
    assert (found[0, :4] == 1).all()


@pytest.mark.parametrize("runs", [3, 5, 12])
def test_outliers_are_found_as_often_as_said_where_there_are_none(runs: int) -> None:
    values = np.random.default_rng(1).normal(size=(20_000, runs))
    assert (outlier_p(values) < 0.01).any(axis=1).mean() == pytest.approx(0.01, abs=0.003)


def test_without_scatter_nothing_is_an_outlier_but_what_differs() -> None:
    assert outlier_p(np.full((1, 4), 0.3)).tolist() == [[1.0] * 4]
    assert outlier_p(np.array([[2.0, 2, 2, 3]])).tolist() == [[1, 1, 1, 0]]
    assert np.isnan(outlier_p(np.array([[1.0, 2]]))).all()
    assert np.isnan(outlier_p(np.array([[1.0, 2, np.nan]]))).all()


def test_scatter_is_compared_by_its_median() -> None:
    x = np.array([[0.0, 1], [0, 2], [5, 5]])
    assert scatter_ratio(x, 3 * x) == pytest.approx(3)
    assert scatter_ratio(x, np.ones((3, 1))) == 1
    assert scatter_ratio(np.ones((2, 2)), x[:2]) == 1
