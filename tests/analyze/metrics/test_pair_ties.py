"""Rows that tie and directions without a unique answer: expected overlaps, refusals, distinct rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze.linalg import FactoredMatrix
from pico_analyze.linalg.sample import Sample, distinct_rows
from pico_analyze.metrics.pair import mutual_knn, pwcca, subspace_overlap, svcca
from pico_analyze.metrics.single import Outcome

NOT_UNIQUE, TOO_FEW_ROWS = Outcome(None, "not_unique"), Outcome(None, "n_less_than_d")


def drawn(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(seed: int, rows: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))


def orders(distances: np.ndarray, i: int, k: int) -> list[set[int]]:
    """The k nearest of row i under every order of the rows, ties being broken by that order."""
    others = [j for j in range(len(distances)) if j != i]
    return [set(sorted(order, key=lambda j: distances[i, j])[:k]) for order in itertools.permutations(others)]


def by_brute_force(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """The mean over all pairs of orders, one for each sample."""
    shared = 0.0
    for i in range(len(x)):
        near = [orders(np.abs(z[:, None, :] - z[None, :, :]).sum(axis=2), i, k) for z in (x, y)]
        shared += float(np.mean([len(a & b) for a in near[0] for b in near[1]]))
    return shared / (k * len(x))


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_mutual_knn_is_the_mean_over_all_orders_of_what_ties(seed: int, k: int) -> None:
    """Rows of 0 and 1, where squared and absolute differences rank alike and most distances tie."""
    draw = np.random.default_rng(seed)
    x, y = draw.integers(0, 2, (5, 3)).astype(float), draw.integers(0, 2, (5, 2)).astype(float)
    found = mutual_knn(Sample.of(torch.from_numpy(x)), Sample.of(torch.from_numpy(y)), k)
    if found.status == "ok":
        assert found.value == pytest.approx(by_brute_force(x, y, k), abs=1e-12)
    else:
        assert found.status == "zero"
        assert min(len(np.unique(z, axis=0)) for z in (x, y)) == 1


def test_equal_tokens_overlap_as_a_hypergeometric_draw_says() -> None:
    """A row's 7 equals tie for 3 places, in either sample: of 3 and 3 drawn among 7 the mean overlap is 9 / 7."""
    ids = torch.arange(4).repeat_interleave(8)
    x, y = (Sample.of(drawn(seed, 4, 6)[ids]) for seed in (0, 1))
    expected = scipy.stats.hypergeom(7, 3, 3).mean() / 3
    assert mutual_knn(x, y, 3).value == pytest.approx(expected, abs=1e-12)
    assert mutual_knn(x, x, 3).value == pytest.approx(expected, abs=1e-12)
    assert mutual_knn(x, x, 7).value == 1, "all equals have a place"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_does_not_matter(dtype: torch.dtype, seed: int) -> None:
    ids = tokens(seed, 64, 20)
    x, y = (drawn(seed + i, 20, 24)[ids].to(dtype) for i in (1, 2))
    values = set()
    for draw in range(5):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(draw))
        values.add(round(mutual_knn(Sample.of(x[order]), Sample.of(y[order]), 10).value or 0, 12))
    assert len(values) == 1


def test_layer_0_queries_have_no_unique_pwcca() -> None:
    """Rows of 60 tokens: 40 and 40 directions in 59 dimensions have 21 in common, whatever was learned."""
    ids = torch.cat([torch.arange(60), tokens(0, 196, 60)])
    x, y = (drawn(seed, 60, 40)[ids] for seed in (1, 2))
    assert distinct_rows(Sample.of(x), Sample.of(y)) == 60
    assert pwcca(Sample.of(x), Sample.of(y)) == NOT_UNIQUE
    for dtype in (torch.float32, torch.bfloat16):
        assert pwcca(Sample.of(x.to(dtype)), Sample.of(y.to(dtype))) == NOT_UNIQUE
    assert pwcca(Sample.of(x[:, :25]), Sample.of(y[:, :25])).status == "ok", "25 and 25 have none in common"


def test_its_value_would_depend_on_the_basis() -> None:
    """The definition itself, with another orthonormal basis of the directions that the correlation 1 belongs to."""
    x, y = drawn(0, 40, 25), drawn(1, 40, 25)
    left, values, right = Sample.of(x).basis
    other = Sample.of(y).basis.left
    directions, correlations, _ = torch.linalg.svd(left.T @ other)
    common = int((correlations > 1 - 1e-10).sum())
    assert common == 25 + 25 - 39
    found = []
    for seed in (2, 3):
        turned = directions.clone()
        turned[:, :common] = directions[:, :common] @ torch.linalg.qr(drawn(seed, common, common)).Q
        weights = (turned.T @ (values[:, None] * right)).abs().sum(dim=1)
        found.append(float(weights @ correlations / weights.sum()))
    assert abs(found[0] - found[1]) > 1e-3
    assert pwcca(Sample.of(x), Sample.of(y)) == NOT_UNIQUE


def test_equal_correlations_everywhere_need_no_weights() -> None:
    x = drawn(0, 60, 20)
    for turned in (x, x @ torch.linalg.qr(drawn(1, 20, 20)).Q, x @ drawn(2, 20, 20), x + 1e-9 * drawn(3, 60, 20)):
        assert pwcca(Sample.of(x), Sample.of(turned)) == Outcome(pytest.approx(1, abs=1e-9))
    apart = torch.zeros(16, 2, dtype=torch.float64), torch.zeros(16, 2, dtype=torch.float64)
    for z, rows in zip(apart, ((0, 2), (4, 6)), strict=True):
        for column, row in enumerate(rows):
            z[row, column], z[row + 1, column] = 1, -1
    assert pwcca(*map(Sample.of, apart)) == Outcome(pytest.approx(0, abs=1e-12)), "all are 0"


@pytest.mark.parametrize("fn", [svcca, pwcca, subspace_overlap])
def test_distinct_rows_count_and_not_repeated_ones(fn: object) -> None:
    ids = torch.arange(9).repeat(20)
    x, y = (drawn(seed, 9, 30)[ids] for seed in (0, 1))
    assert fn(Sample.of(x), Sample.of(y)) == TOO_FEW_ROWS  # type: ignore[operator]
    product = FactoredMatrix(drawn(0, 9, 30)[ids], drawn(2, 30, 50))
    assert fn(Sample.of(product), Sample.of(y)) == TOO_FEW_ROWS  # type: ignore[operator]


def orthogonal_columns(sizes: list[float], seed: int) -> Sample:
    columns = drawn(seed, 40, len(sizes))
    return Sample.of(torch.linalg.qr(columns - columns.mean(0)).Q * torch.tensor(sizes, dtype=torch.float64))


def test_directions_of_one_size_at_the_limit_are_not_unique() -> None:
    sizes = [3.0, 2.0, 2.0, 1.0]
    x, y = orthogonal_columns(sizes, 0), orthogonal_columns(sizes, 1)
    assert subspace_overlap(x, y, 2) == NOT_UNIQUE
    assert {subspace_overlap(x, y, k).status for k in (1, 3, 4)} == {"ok"}
    assert svcca(x, y, 0.7) == NOT_UNIQUE, "9 and 4 of 18 are 0.72"
    assert svcca(x, y, 0.9).status == "ok"


def test_what_does_not_exceed_rounding_is_not_called_zero() -> None:
    x = (1 + 2.0**-7 * torch.eye(40)).bfloat16()  # one unit in the last place, which rounding can have done
    y = drawn(0, 40, 5)
    for fn in (svcca, pwcca, subspace_overlap):
        assert fn(Sample.of(x), Sample.of(y)) == Outcome(None, "within_rounding")
        assert fn(Sample.of(torch.ones(40, 40)), Sample.of(y)) == Outcome(None, "zero")
