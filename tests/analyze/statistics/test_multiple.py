"""Holm and max-t: closed forms, brute force, and the rate of false marks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from pico_analyze.statistics import holm, least_p, max_t
from scipy import stats


def normal(seed: int, n: int, m: int, cells: int = 5) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(cells, n)), generator.normal(0.5, 2, size=(cells, m))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.0233, 0.0045, 0.095, 0.039]).tolist() == pytest.approx([0.0699, 0.018, 0.095, 0.078])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@pytest.mark.parametrize("pairs", [2, 3, 6])
def test_sign_flips_equal_brute_force_over_all_signs(pairs: int) -> None:
    x, y = normal(1, pairs, pairs)
    observed = np.abs(stats.ttest_rel(y, x, axis=1).statistic)
    largest = []
    for signs in itertools.product((1, -1), repeat=pairs):
        largest.append(np.abs(stats.ttest_1samp((y - x) * signs, 0, axis=1).statistic).max())
    expected = (np.array(largest)[None, :] >= observed[:, None] * (1 - 1e-9)).mean(axis=1)
    assert max_t(x, y, True).p == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (4, 4), (3, 5)])
def test_permutations_equal_brute_force_over_all_choices(n: int, m: int) -> None:
    x, y = normal(2, n, m)
    both = np.hstack([x, y])
    statistics = []
    for chosen in itertools.combinations(range(n + m), n):
        others = [run for run in range(n + m) if run not in chosen]
        statistics.append(np.abs(stats.ttest_ind(both[:, chosen], both[:, others], axis=1, equal_var=False).statistic))
    observed, largest = statistics[0], np.array(statistics).max(axis=1)
    expected = (largest[None, :] >= observed[:, None] * (1 - 1e-9)).mean(axis=1)
    assert max_t(x, y, False).p == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n", "m", "paired", "least"),
    [(5, 5, True, 1 / 16), (6, 6, True, 1 / 32), (3, 3, False, 0.1), (4, 4, False, 2 / 70), (3, 5, False, 1 / 56)],
)
def test_the_least_p_is_what_a_difference_without_doubt_reaches(n: int, m: int, paired: bool, least: float) -> None:
    assert least_p(n, m, paired) == pytest.approx(least)
    x, y = normal(3, n, m)
    assert max_t(x, y + 1e6, paired).p == pytest.approx(np.full(5, least))


def test_many_runs_are_sampled_with_a_seed() -> None:
    x, y = normal(4, 20, 20)
    first = max_t(x, y, True, seed=1)
    assert first.least == pytest.approx(1e-4)
    assert np.array_equal(first.p, max_t(x, y, True, seed=1).p)
    assert max_t(x, y + 100, True).p == pytest.approx(np.full(5, 1e-4))
    assert max_t(x, y + 100, False).p == pytest.approx(np.full(5, 1e-4))


@pytest.mark.parametrize("paired", [True, False])
def test_cells_without_scatter_and_without_values(paired: bool) -> None:
    x, y = normal(5, 6, 6)
    x[0], y[0] = 3.0, 3.0  # equal in all runs
    x[1], y[1] = 3.0, 5.0  # differs by as much in all runs
    y[2, 0] = np.nan
    p = max_t(x, y, paired).p
    assert p[0] == 1
    assert p[1] == pytest.approx(least_p(6, 6, paired))
    assert np.isnan(p[2])
    assert np.isnan(max_t(np.full((1, 6), np.nan), np.ones((1, 6)), paired).p).all()


@pytest.mark.parametrize("paired", [True, False])
def test_scale_and_place_of_a_cell_do_not_matter(paired: bool) -> None:
    x, y = normal(6, 6, 6)
    scale, place = np.array([[1e-12], [1e12], [1], [3], [1e-3]]), np.array([[0], [0], [1e4], [-7], [1]])
    assert max_t(x * scale + place, y * scale + place, paired).p == pytest.approx(max_t(x, y, paired).p)


@pytest.mark.parametrize(("paired", "n", "m"), [(True, 6, 6), (True, 8, 8), (False, 4, 4), (False, 4, 6)])
def test_at_most_one_map_in_twenty_is_marked_where_nothing_differs(paired: bool, n: int, m: int) -> None:
    generator = np.random.default_rng(8)
    marked, maps = 0, 400
    for _ in range(maps):
        common = generator.normal(size=n + m)  # all cells share their runs
        values = common + 0.5 * generator.normal(size=(12, n + m))
        marked += bool((max_t(values[:, :n], values[:, n:], paired).p <= 0.05).any())
    assert marked <= stats.binom.ppf(0.999, maps, 0.05)
