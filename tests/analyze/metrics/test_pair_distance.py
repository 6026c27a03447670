"""Similarities from distances between rows: RBF CKA and mutual nearest neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze.linalg.sample import Sample
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.pair import cka, cka_rbf, mutual_knn
from pico_analyze.metrics.single import Outcome
from scipy.spatial.distance import cdist, pdist

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(x: torch.Tensor | list[float]) -> Sample:
    x = torch.as_tensor(x, dtype=torch.float64)
    return Sample.of(x[:, None] if x.ndim == 1 else x)


def rbf_cka(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    n = len(x)
    centring = np.eye(n) - np.ones((n, n)) / n
    kernels = [np.exp(-cdist(z, z, "sqeuclidean") / (2 * (bandwidth * np.median(pdist(z))) ** 2)) for z in (x, y)]
    hsic = [[np.trace(k @ centring @ m @ centring) for m in kernels] for k in kernels]
    return float(hsic[0][1] / np.sqrt(hsic[0][0] * hsic[1][1]))


def shared_neighbours(x: np.ndarray, y: np.ndarray, k: int) -> float:
    shared = 0
    for i in range(len(x)):
        near = [sorted(set(range(len(z))) - {i}, key=lambda j: np.linalg.norm(z[i] - z[j]))[:k] for z in (x, y)]
        shared += len(set(near[0]) & set(near[1]))
    return shared / (k * len(x))


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(4, 20), st.integers(1, 30), st.integers(1, 8), st.sampled_from([0.2, 0.5, 0.8]))
def test_rbf_cka_equals_the_definition(seed: int, rows: int, p: int, q: int, bandwidth: float) -> None:
    x, y = drawn(seed, rows, p) + 3, drawn(seed + 1, rows, q)
    expected = rbf_cka(x.numpy(), y.numpy(), bandwidth)
    assert cka_rbf(sample(x), sample(y), bandwidth) == Outcome(pytest.approx(expected, rel=1e-8))


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(6, 20), st.integers(1, 8), st.integers(1, 4))
def test_mutual_knn_equals_the_definition(seed: int, rows: int, width: int, k: int) -> None:
    x = drawn(seed, rows, width)
    y = x + 0.5 * drawn(seed + 1, rows, width)
    assert mutual_knn(sample(x), sample(y), k) == Outcome(pytest.approx(shared_neighbours(x.numpy(), y.numpy(), k)))


def test_closed_form_of_rbf_cka() -> None:
    """x = (0, 1, 2): median distance 1. Rows equally far apart: K = (1 - e) I + e 11', whose centred part is (1 - e) H.

    tr(H K H) / (||H K H|| ||H||) with K of x: its diagonal is 1, off it a = exp(-1/2) twice and b = exp(-2).
    """
    a, b = math.exp(-1 / 2), math.exp(-2)
    trace = 3 - (3 + 4 * a + 2 * b) / 3
    squares = (
        (3 + 4 * a**2 + 2 * b**2) - 2 * (2 * (1 + a + b) ** 2 + (1 + 2 * a) ** 2) / 3 + (3 + 4 * a + 2 * b) ** 2 / 9
    )
    found = cka_rbf(sample([0.0, 1.0, 2.0]), sample(torch.eye(3)), 1.0)
    assert found.value == pytest.approx(trace / math.sqrt(2 * squares))


def test_closed_form_of_mutual_knn() -> None:
    x = sample([0.0, 1.0, 10.0, 12.0, 30.0])
    assert mutual_knn(x, sample([0.0, 1.0, 100.0, 120.0, 300.0]), 1).value == 1
    assert mutual_knn(x, sample([0.0, 40.0, 10.5, 12.0, 14.0]), 1).value == 3 / 5  # rows 0 and 1 have others


def test_a_wide_kernel_is_linear_cka() -> None:
    """exp(-d^2 / (2 s^2)) -> 1 - d^2 / (2 s^2), whose centred part is the linear Gram matrix over s^2."""
    x, y = sample(drawn(0, 30, 5)), sample(drawn(1, 30, 8) + drawn(0, 30, 5) @ drawn(2, 5, 8))
    assert cka_rbf(x, y, 300.0).value == pytest.approx(cka(x, y).value, rel=1e-4)
    assert cka_rbf(x, y, 0.4).value != pytest.approx(cka(x, y).value, rel=1e-2)


def test_parameters_are_those_of_the_table() -> None:
    x, y = sample(drawn(0, 30, 5)), sample(drawn(1, 30, 5))
    for name, fn in (("cka_rbf", cka_rbf), ("mutual_knn", mutual_knn)):
        assert fn(x, y) == fn(x, y, **METRICS[name].parameters)


@pytest.mark.parametrize("rows", [1, 2, 10, 11])
def test_neighbours_that_are_all_rows_are_refused(rows: int) -> None:
    x = sample(drawn(0, rows, 3))
    assert mutual_knn(x, x, 10) == Outcome(None, "n_less_than_d")
    assert mutual_knn(sample(drawn(0, 12, 3)), sample(drawn(1, 12, 3)), 10).status == "ok"


@pytest.mark.parametrize("x", [torch.ones(1, 3), torch.ones(6, 3), torch.eye(6)[:, :1]])
def test_rows_of_which_most_are_equal_have_no_bandwidth(x: torch.Tensor) -> None:
    other = sample(drawn(0, len(x), 3))
    assert cka_rbf(sample(x), other) == cka_rbf(other, sample(x)) == Outcome(None, "zero")


def test_distances_are_those_between_rows() -> None:
    x = drawn(0, 20, 7) + 100
    found = sample(x)
    np.testing.assert_allclose(found.squared_distances, cdist(x, x, "sqeuclidean"), atol=1e-10)
    assert (found.squared_distances.diagonal() == 0).all()
    assert found.median_distance == pytest.approx(np.median(pdist(x)))
