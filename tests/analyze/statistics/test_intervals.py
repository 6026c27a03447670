"""Intervals against scipy and closed forms, and how often they cover the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pico_analyze.statistics import LEAST_BOOTSTRAP_RUNS, Interval, bootstrap, student_pairs, welch
from scipy import stats


def normal(seed: int, n: int, m: int, cells: int = 7, scale: float = 1.0) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.normal(0, 1, (cells, n)), generator.normal(0.4, scale, (cells, m))


@pytest.mark.parametrize("runs", [2, 3, 5, 30])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_pairs_are_students(runs: int, level: float) -> None:
    x, y = normal(1, runs, runs)
    found, theirs = student_pairs(x, y, level), stats.ttest_rel(y, x, axis=1)
    expected = theirs.confidence_interval(level)
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.method, found.df.tolist()) == ("student_pairs", [runs - 1.0] * 7)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (2, 9), (7, 4)])
def test_unpaired_is_welchs(n: int, m: int) -> None:
    x, y = normal(2, n, m, scale=3.0)
    found, theirs = welch(x, y), stats.ttest_ind(y, x, axis=1, equal_var=False)
    expected = theirs.confidence_interval()
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)
    assert found.df == pytest.approx(theirs.df)
    assert found.p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("interval", [student_pairs, welch])
def test_runs_that_agree_have_an_interval_without_width(interval: Callable[..., Interval]) -> None:
    found = interval(np.array([[8.0, 8, 8], [1, 1, 1]]), np.array([[5.0, 5, 5], [1, 1, 1]]))
    assert found.low.tolist() == found.high.tolist() == [-3.0, 0.0]
    assert found.p.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("interval", [student_pairs, welch])
def test_a_missing_value_leaves_its_cell_alone_without_an_interval(interval: Callable[..., Interval]) -> None:
    x, y = normal(3, 4, 4)
    y[2, 1] = np.nan
    found = interval(x, y)
    assert np.isnan([found.low[2], found.high[2], found.p[2]]).all()
    assert np.isfinite(np.delete(found.low, 2)).all()


@pytest.mark.parametrize("interval", [student_pairs, welch])
def test_one_run_has_no_interval(interval: Callable[..., Interval]) -> None:
    with pytest.raises(ValueError, match="at least two runs"):
        interval(np.ones((3, 1)), np.ones((3, 1)))


def test_the_bootstrap_is_the_percentile_bootstrap() -> None:
    x, y = normal(4, 12, 15, cells=1, scale=2.0)

    def difference(x: Any, y: Any, axis: int = -1) -> Any:
        return np.mean(y, axis=axis) - np.mean(x, axis=axis)

    theirs = stats.bootstrap((x[0], y[0]), difference, n_resamples=20_000, method="percentile", rng=2)
    found = bootstrap(x, y, False, seed=3)
    assert found.low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.08)
    assert found.high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.08)
    assert found.method == "bootstrap"


def test_a_bootstrap_of_few_runs_is_refused_and_cells_do_not_depend_on_each_other() -> None:
    with pytest.raises(ValueError, match="at least 10 runs"):
        bootstrap(*normal(5, LEAST_BOOTSTRAP_RUNS - 1, 12), False)
    x, y = normal(7, 10, 12, cells=2100)
    whole, part = bootstrap(x, y, False, seed=1), bootstrap(x[2050:], y[2050:], False, seed=1)
    assert np.array_equal(whole.low[2050:], part.low)
    assert not np.array_equal(whole.low, bootstrap(x, y, False, seed=2).low)
