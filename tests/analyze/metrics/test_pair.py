"""Similarities of samples: what all are invariant to, and linear CKA by closed forms and full Gram matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze.linalg import FactoredMatrix
from pico_analyze.linalg.sample import Sample
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.single import Outcome

PAIRS = [name for name, metric in METRICS.items() if metric.arity == 2 and metric.needs == "sample"]
LINEAR_CKA = ["cka", "cka_debiased"]
SPANS = ["svcca", "pwcca", "subspace_overlap"]  # compare what the columns span, the last of 10 directions or fewer
seeds = st.integers(0, 2**32 - 1)


def of(name: str, x: torch.Tensor | FactoredMatrix, y: torch.Tensor | FactoredMatrix) -> Outcome:
    return METRICS[name].fn(Sample.of(x), Sample.of(y), **METRICS[name].parameters)


def drawn(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hadamard(rows: int, *columns: int) -> torch.Tensor:
    """Columns of +-1, each of mean 0 and orthogonal to the others (column 0, all ones, is not among them)."""
    return torch.from_numpy(scipy.linalg.hadamard(rows)[:, list(columns)].astype(np.float64))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (hadamard(8, 1, 2), hadamard(8, 3, 4), 0),
        (hadamard(8, 1), hadamard(8, 1, 2), 2**-0.5),
        (hadamard(8, 1, 2), hadamard(8, 2, 3), 1 / 2),
        (torch.eye(8), hadamard(8, 1), 7**-0.5),
        (hadamard(8, 1), -3 * hadamard(8, 1) + 5, 1),
    ],
)
def test_closed_forms_of_cka(x: torch.Tensor, y: torch.Tensor, expected: float) -> None:
    assert of("cka", x, y) == Outcome(pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize("rows", [4, 8, 32])
def test_closed_form_of_debiased_cka(rows: int) -> None:
    """n (n - 3) HSIC_1 of two orthogonal contrasts is -n^2 / (n - 1), of one with itself n^2 (n - 2) / (n - 1)."""
    x, y = hadamard(rows, 1), hadamard(rows, 2)
    assert of("cka_debiased", x, y) == Outcome(pytest.approx(-1 / (rows - 2)))
    assert of("cka_debiased", x, x) == Outcome(pytest.approx(1))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    centring = np.eye(n) - np.ones((n, n)) / n

    def hsic(k: np.ndarray, gram: np.ndarray) -> float:
        return float(np.trace(k @ centring @ gram @ centring))

    k, gram = x @ x.T, y @ y.T
    return hsic(k, gram) / np.sqrt(hsic(k, k) * hsic(gram, gram))


def unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, eq. 5, with whole Gram matrices of samples that are not centred."""
    n = len(x)
    k, gram = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(gram, 0)
    one = np.ones(n)
    corrections = (one @ k @ one) * (one @ gram @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ gram @ one)
    return float((np.trace(k @ gram) + corrections) / (n * (n - 3)))


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    return unbiased_hsic(x, y) / np.sqrt(unbiased_hsic(x, x) * unbiased_hsic(y, y))


ORACLES = {"cka": linear_cka, "cka_debiased": debiased_cka}


@pytest.mark.parametrize("name", LINEAR_CKA)
@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(6, 20), st.integers(2, 30), st.integers(2, 30))
def test_equals_the_definition(name: str, seed: int, rows: int, p: int, q: int) -> None:
    x = drawn(seed, rows, p) + 3
    y = torch.cat([x[:, : q // 2], drawn(seed + 1, rows, q)], dim=1)
    assert of(name, x, y) == Outcome(pytest.approx(ORACLES[name](x.numpy(), y.numpy()), rel=1e-6, abs=1e-9))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(5))
def test_does_not_change_under_turns_scales_shifts_and_order(name: str, seed: int) -> None:
    x, y = drawn(seed, 40, 10), drawn(seed + 1, 40, 16) + drawn(seed, 40, 10) @ drawn(seed + 2, 10, 16)
    expected, other_way = (pytest.approx(of(name, *pair).value, rel=1e-9) for pair in ((x, y), (y, x)))
    turn = torch.linalg.qr(drawn(seed + 3, 10, 10)).Q
    rows, neurons = drawn(seed + 5, 40, 1).argsort(dim=0)[:, 0], drawn(seed + 6, 10, 1).argsort(dim=0)[:, 0]
    if name != "pwcca":  # weighs by neuron, so that what is explained may not be turned
        assert of(name, x @ turn, y).value == expected
    assert of(name, y, x @ turn).value == other_way
    assert name == "pwcca" or other_way == expected.expected
    assert of(name, -1e3 * x, 1e-3 * y).value == expected
    assert of(name, x + drawn(seed + 4, 1, 10), y).value == expected
    assert of(name, x[:, neurons], y).value == expected
    assert of(name, x[rows], y[rows]).value == expected
    assert of(name, torch.cat([x, torch.full((40, 3), 0.1)], 1), y).value == expected


@pytest.mark.parametrize("name", PAIRS)
def test_depends_on_the_pairing_of_rows_and_on_stretching(name: str) -> None:
    x = drawn(0, 24, 10)
    assert of(name, x, x[torch.arange(23, -1, -1)]).value < 0.9
    stretched = of(name, x, x @ torch.diag(10.0 ** -torch.arange(10.0).double())).value
    assert stretched == pytest.approx(1) if name in SPANS else stretched < 0.9


@pytest.mark.parametrize("name", PAIRS)
@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(24, 40), st.integers(2, 20))
def test_similarity_with_itself_is_1(name: str, seed: int, rows: int, width: int) -> None:
    x = drawn(seed, rows, width)
    assert of(name, x, x.clone()) == Outcome(pytest.approx(1))


@pytest.mark.parametrize("name", PAIRS)
@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(24, 40), st.integers(1, 12), st.integers(1, 9))
def test_values_lie_in_the_declared_range(name: str, seed: int, rows: int, p: int, q: int) -> None:
    x, y = drawn(seed, rows, p), torch.cat([drawn(seed, rows, p), drawn(seed + 1, rows, q) * 0.1], dim=1)
    low, high = map(float, METRICS[name].range.strip("[]()").split(", "))
    assert low <= of(name, x, y).value <= high + 1e-12
    assert low <= of(name, y, x).value <= high + 1e-12


def test_independent_samples_of_32_rows_look_alike_to_cka_and_not_to_the_debiased_one() -> None:
    pairs = [(drawn(2 * seed, 32, 64), drawn(2 * seed + 1, 32, 64)) for seed in range(40)]
    biased = [of("cka", x, y).value for x, y in pairs]
    debiased = [of("cka_debiased", x, y).value for x, y in pairs]
    assert min(biased) > 0.5
    assert max(map(abs, debiased)) < 0.15
    assert abs(np.mean(debiased)) < 0.015


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_fewer_than_4_rows_give_no_debiased_cka(rows: int) -> None:
    assert of("cka_debiased", drawn(0, rows, 5), drawn(1, rows, 5)) == Outcome(None, "n_less_than_d")


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
def test_constant_samples_give_none(name: str, constant: float) -> None:
    flat = torch.full((33, 4), constant, dtype=torch.float64)
    assert of(name, flat, drawn(0, 33, 4)) == Outcome(None, "zero")
    assert of(name, drawn(0, 33, 4), flat) == Outcome(None, "zero")
    assert of(name, flat, flat) == Outcome(None, "zero")


@pytest.mark.parametrize("rows", [5, 8, 33])
def test_rows_that_are_all_equally_far_apart_give_no_debiased_cka(rows: int) -> None:
    """Orthonormal rows: the off-diagonal entries of the Gram matrix are all equal, their HSIC is 0 up to rounding."""
    for seed in range(10):
        simplex = 0.1 * torch.linalg.qr(drawn(seed, rows, rows)).Q
        assert of("cka_debiased", simplex, simplex) == Outcome(None, "zero")
        assert of("cka_debiased", simplex, drawn(seed, rows, 4)) == Outcome(None, "zero")
        assert of("cka_debiased", drawn(seed, rows, 4), simplex) == Outcome(None, "zero")


@pytest.mark.parametrize("name", PAIRS)
def test_products_are_taken_as_the_matrix_they_stand_for(name: str) -> None:
    product = FactoredMatrix(drawn(0, 12, 3), drawn(1, 3, 8))
    y = drawn(2, 12, 5)
    assert of(name, product, y).value == pytest.approx(of(name, product.dense(), y).value)
