"""Metrics of one matrix: closed forms, invariances, and numpy or scipy from the definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze import linalg
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.single import Outcome

TAIL = (
    "heavy_tail_exponent",
    "heavy_tail_ks",
    "heavy_tail_count",
)  # need more values than these matrices have: test_single_tail.py
SINGLE = [name for name, m in METRICS.items() if m.needs in ("spectrum", "entries") and name not in TAIL]
SPECTRAL = [name for name in SINGLE if METRICS[name].needs == "spectrum"]
NORMS = ("frobenius_norm", "nuclear_norm", "spectral_norm", "max_abs")
DEFICIENT = Outcome(None, "rank_deficient")

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 10)


def of(name: str, matrix: torch.Tensor) -> Outcome:
    given_ = linalg.spectra([matrix])[0] if METRICS[name].needs == "spectrum" else linalg.entries(matrix)
    return METRICS[name].fn(given_, **METRICS[name].parameters)


def drawn(seed: int, m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(seed: int, n: int) -> torch.Tensor:
    return torch.linalg.qr(drawn(seed, n, n)).Q


def placed(m: int, n: int, *values: float) -> torch.Tensor:
    """(m, n) zeros with `values` on the diagonal."""
    matrix = torch.zeros(m, n)
    matrix.diagonal()[: len(values)] = torch.tensor(values)
    return matrix


IDENTITY = torch.eye(5)
RANK_ONE = torch.full((4, 6), -3.0)
DIAGONAL = placed(6, 4, 4, 2, 1, 1)  # p = 1/2, 1/4, 1/8, 1/8: an entropy of 1.75 ln 2
ONE_HOT = placed(3, 5, -7)
SINGULAR = placed(3, 3, 2, 2)
ZERO = torch.zeros(3, 4)
ROOT24 = math.sqrt(24)

CLOSED: dict[str, list[tuple[torch.Tensor, float | Outcome]]] = {
    "per": [
        (IDENTITY, 1),
        (RANK_ONE, 1 / 4),
        (DIAGONAL, 2**1.75 / 4),
        (ONE_HOT, 1 / 3),
        (SINGULAR, 2 / 3),
        (ZERO, Outcome(0.0, "zero")),
    ],
    "effective_rank": [
        (IDENTITY, 5),
        (RANK_ONE, 1),
        (DIAGONAL, 2**1.75),
        (ONE_HOT, 1),
        (SINGULAR, 2),
        (ZERO, Outcome(0.0, "zero")),
    ],
    "condition_number": [
        (IDENTITY, 1),
        (RANK_ONE, DEFICIENT),
        (DIAGONAL, 4),
        (ONE_HOT, DEFICIENT),
        (SINGULAR, DEFICIENT),
        (ZERO, Outcome(None, "zero")),
    ],
    "effective_condition_number": [
        (IDENTITY, 1),
        (RANK_ONE, 1),
        (DIAGONAL, 4),
        (ONE_HOT, 1),
        (placed(3, 3, 6, 2), 3),
        (ZERO, Outcome(None, "zero")),
    ],
    "numerical_rank": [
        (IDENTITY, 5),
        (RANK_ONE, 1),
        (DIAGONAL, 4),
        (ONE_HOT, 1),
        (SINGULAR, 2),
        (ZERO, Outcome(0.0, "zero")),
    ],
    "stable_rank": [
        (IDENTITY, 5),
        (RANK_ONE, 1),
        (DIAGONAL, 22 / 16),
        (ONE_HOT, 1),
        (SINGULAR, 2),
        (ZERO, Outcome(0.0, "zero")),
    ],
    "participation_ratio": [
        (IDENTITY, 5),
        (RANK_ONE, 1),
        (DIAGONAL, 22**2 / (16**2 + 4**2 + 2)),
        (ONE_HOT, 1),
        (SINGULAR, 2),
        (ZERO, Outcome(0.0, "zero")),
    ],
    "spectral_entropy": [
        (IDENTITY, math.log(5)),
        (RANK_ONE, 0),
        (placed(6, 5, 2, 1, 1, 1, 1), 2 * math.log(2)),  # p = 1/2 and four of 1/8
        (ONE_HOT, 0),
        (SINGULAR, math.log(2)),
        (ZERO, Outcome(0.0, "zero")),
    ],
    "frobenius_norm": [
        (IDENTITY, math.sqrt(5)),
        (RANK_ONE, 3 * ROOT24),
        (DIAGONAL, math.sqrt(22)),
        (ONE_HOT, 7),
        (ZERO, 0),
    ],
    "nuclear_norm": [(IDENTITY, 5), (RANK_ONE, 3 * ROOT24), (DIAGONAL, 8), (ONE_HOT, 7), (ZERO, 0)],
    "spectral_norm": [(IDENTITY, 1), (RANK_ONE, 3 * ROOT24), (DIAGONAL, 4), (ONE_HOT, 7), (ZERO, 0)],
    "max_abs": [(IDENTITY, 1), (RANK_ONE, 3), (DIAGONAL, 4), (ONE_HOT, 7), (ZERO, 0)],
    "gini": [
        (IDENTITY, 1 - 5 / 25),
        (RANK_ONE, 0),
        (DIAGONAL, (17 + 19 + 2 * 21 + 4 * 23) / (24 * 8)),
        (ONE_HOT, 1 - 1 / 15),
        (ZERO, Outcome(0.0, "zero")),
        (torch.tensor([2.0]), 0),
    ],
    "hoyer": [
        (IDENTITY, (5 - math.sqrt(5)) / 4),
        (RANK_ONE, 0),
        (DIAGONAL, (ROOT24 - 8 / math.sqrt(22)) / (ROOT24 - 1)),
        (ONE_HOT, 1),
        (ZERO, Outcome(0.0, "zero")),
        (torch.tensor([2.0]), 1),
    ],
    "kurtosis": [
        (IDENTITY, 1 / (0.2 * 0.8) - 6),  # of a coin that shows 1 with probability 1/5
        (RANK_ONE, Outcome(None, "zero")),
        (ONE_HOT, 15**2 / 14 - 6),
        (torch.tensor([3.0, -3.0]), -2),
        (torch.tensor([1.0, 2.0, 3.0]), -1.5),
        (ZERO, Outcome(None, "zero")),
        (torch.tensor([2.0]), Outcome(None, "zero")),
    ],
    "near_zero_share": [
        (IDENTITY, 20 / 25),
        (RANK_ONE, 0),
        (DIAGONAL, 20 / 24),
        (ONE_HOT, 14 / 15),
        (torch.tensor([1.0] * 98 + [-0.009, 0.011]), 1 / 100),  # their root mean square is 0.98995
        (ZERO, Outcome(1.0, "zero")),
    ],
}


def test_every_metric_has_closed_forms_and_an_oracle() -> None:
    assert set(CLOSED) == set(ORACLES) == set(SINGLE)


@pytest.mark.parametrize(
    ("name", "matrix", "expected"), [(name, *case) for name, cases in CLOSED.items() for case in cases]
)
def test_closed_form(name: str, matrix: torch.Tensor, expected: float | Outcome) -> None:
    found = of(name, matrix)
    value, status = expected if isinstance(expected, Outcome) else (expected, "ok")
    assert found.status == status
    assert found.value == (None if value is None else pytest.approx(value, rel=1e-12, abs=1e-12))


def gini_by_differences(w: np.ndarray) -> float:
    """Mean absolute difference of two entries over twice the mean."""
    a = np.abs(w).ravel()
    return float(np.abs(a[:, None] - a[None, :]).mean() / (2 * a.mean()))


def singular_values(w: np.ndarray) -> np.ndarray:
    return scipy.linalg.svdvals(w)


def tolerance(w: np.ndarray) -> float:
    eps = float(np.finfo(np.float64).eps)
    return max(eps / 2 * float(np.linalg.norm(w)), max(w.shape) * eps * float(np.linalg.norm(w, 2)))


ORACLES: dict[str, Callable[[np.ndarray], float]] = {
    "per": lambda w: math.exp(scipy.stats.entropy(singular_values(w))) / min(w.shape),
    "effective_rank": lambda w: math.exp(scipy.stats.entropy(singular_values(w))),
    "condition_number": lambda w: np.linalg.cond(w, 2),
    "effective_condition_number": lambda w: np.linalg.norm(w, 2) * np.linalg.norm(np.linalg.pinv(w), 2),
    "numerical_rank": lambda w: np.linalg.matrix_rank(w, tol=tolerance(w)),
    "stable_rank": lambda w: np.trace(w.T @ w) / np.linalg.eigvalsh(w.T @ w)[-1],
    "frobenius_norm": lambda w: math.sqrt((w * w).sum()),
    "nuclear_norm": lambda w: np.linalg.norm(w, "nuc"),
    "participation_ratio": lambda w: np.trace(w.T @ w) ** 2 / np.trace(w.T @ w @ w.T @ w),
    "spectral_entropy": lambda w: scipy.stats.entropy(singular_values(w) ** 2),
    "spectral_norm": lambda w: np.linalg.norm(w, 2),
    "max_abs": lambda w: np.linalg.norm(w.ravel(), np.inf),
    "gini": gini_by_differences,
    "hoyer": lambda w: (math.sqrt(w.size) - np.abs(w).sum() / np.linalg.norm(w.ravel())) / (math.sqrt(w.size) - 1),
    "kurtosis": lambda w: scipy.stats.kurtosis(w.ravel(), fisher=True, bias=True),
    "near_zero_share": lambda w: np.mean(np.abs(w) <= 0.01 * np.sqrt(np.mean(w**2))),
}


@pytest.mark.parametrize("name", SINGLE)
@settings(deadline=None, max_examples=25)
@given(seeds, sizes, sizes)
def test_equals_the_definition(name: str, seed: int, m: int, n: int) -> None:
    matrix = drawn(seed, m, n)
    assert of(name, matrix).value == pytest.approx(ORACLES[name](matrix.numpy()), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize(
    "name", ["effective_condition_number", "numerical_rank", "participation_ratio", "per", "stable_rank"]
)
@pytest.mark.parametrize("rank", [1, 3])
def test_equals_the_definition_on_singular_matrices(name: str, rank: int) -> None:
    matrix = drawn(1, 8, rank) @ drawn(2, rank, 6)
    assert of(name, matrix).value == pytest.approx(ORACLES[name](matrix.numpy()), rel=1e-8)
    assert of("condition_number", matrix) == DEFICIENT


@pytest.mark.parametrize("name", SPECTRAL)
@settings(deadline=None, max_examples=20)
@given(seeds, sizes, sizes)
def test_spectra_do_not_change_under_orthogonal_maps_on_either_side(name: str, seed: int, m: int, n: int) -> None:
    matrix = drawn(seed, m, n)
    turned = orthogonal(seed + 1, m) @ matrix @ orthogonal(seed + 2, n)
    assert of(name, turned).value == pytest.approx(of(name, matrix).value, rel=1e-8)


@pytest.mark.parametrize("name", SINGLE)
@settings(deadline=None, max_examples=20)
@given(seeds, sizes, sizes)
def test_order_and_transposition_of_neurons_do_not_matter(name: str, seed: int, m: int, n: int) -> None:
    matrix = drawn(seed, m, n)
    draw = torch.Generator().manual_seed(seed)
    permuted = matrix[torch.randperm(m, generator=draw)][:, torch.randperm(n, generator=draw)]
    assert of(name, permuted).value == pytest.approx(of(name, matrix).value, rel=1e-9)
    assert of(name, matrix.T).value == pytest.approx(of(name, matrix).value, rel=1e-9)


@pytest.mark.parametrize("name", SINGLE)
@settings(deadline=None, max_examples=20)
@given(seeds, st.sampled_from([-1e12, -1.0, 1e-12, 3.0]))
def test_norms_grow_with_the_scale_and_nothing_else_does(name: str, seed: int, scale: float) -> None:
    matrix = drawn(seed, 5, 7)
    factor = abs(scale) if name in NORMS else 1
    assert of(name, scale * matrix).value == pytest.approx(factor * of(name, matrix).value, rel=1e-9)


@pytest.mark.parametrize("name", SINGLE)
@settings(deadline=None, max_examples=20)
@given(seeds, sizes, sizes)
def test_values_lie_in_the_declared_range(name: str, seed: int, m: int, n: int) -> None:
    low, high = METRICS[name].range.strip("[]()").split(", ")
    bounds = {"k": min(m, n), "ln k": math.log(min(m, n)), "inf": math.inf}
    for matrix in (drawn(seed, m, n), placed(m, n, 1, 1e-3), torch.ones(m, n)):
        value = of(name, matrix).value
        if value is not None:
            assert float(low) <= value <= float(bounds.get(high, high))
