"""Metrics of one sample of activations: closed forms, pairs of rows and covariances from numpy, invariances."""

from __future__ import annotations

from collections.abc import Callable

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

NAMES = [name for name, metric in METRICS.items() if metric.arity == 1 and metric.needs == "sample"]
NOTHING = Outcome(None, "zero")
seeds = st.integers(0, 2**32 - 1)


def of(name: str, x: torch.Tensor | FactoredMatrix) -> Outcome:
    return METRICS[name].fn(Sample.of(x), **METRICS[name].parameters)


def drawn(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hadamard(rows: int, *columns: int) -> torch.Tensor:
    """Columns of +-1, of mean 0 and orthogonal to each other."""
    return torch.from_numpy(scipy.linalg.hadamard(rows)[:, list(columns)].astype(np.float64))


THIRDS = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]], dtype=torch.float64)
CLOSED: dict[str, list[tuple[torch.Tensor, float | Outcome]]] = {
    "anisotropy": [
        (torch.eye(6), 0),
        (torch.tensor([[1.0, 2.0]] * 5), 1),
        (torch.tensor([[3.0, 0.0], [-1.0, 0.0]]), -1),
        (THIRDS, -1 / 2),
        (torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), 2**-0.5),
        (torch.tensor([[0.0, 0.0], [1.0, 1.0]]), NOTHING),
        (torch.zeros(4, 3), NOTHING),
    ],
    "intrinsic_dimension": [
        (hadamard(8, 1, 2, 3), 3),
        (hadamard(8, 1) + 5, 1),
        (hadamard(8, 1, 2) * torch.tensor([2.0, 1.0]), 5**2 / (4**2 + 1)),
        (torch.eye(8), 7),
        (THIRDS, 2),
        (torch.full((4, 3), 0.1), Outcome(0.0, "zero")),
    ],
    "dead_units": [
        (torch.tensor([[0.0, 1.0, 0.1, 0.0], [0.0, 1.0, 0.1, 1e-30]]), 3 / 4),
        (drawn(0, 5, 5), 0),
        (torch.full((33, 3), 0.1), 1),
        (torch.zeros(4, 3), 1),
    ],
}


@pytest.mark.parametrize(("name", "x", "expected"), [(name, *case) for name, cases in CLOSED.items() for case in cases])
def test_closed_form(name: str, x: torch.Tensor, expected: float | Outcome) -> None:
    assert of(name, x) == (expected if isinstance(expected, Outcome) else Outcome(pytest.approx(expected, abs=1e-12)))


def mean_cosine(x: np.ndarray) -> float:
    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return float(np.mean([x[i] @ x[j] / np.sqrt(x[i] @ x[i] * (x[j] @ x[j])) for i, j in pairs]))


def dimension_of_covariance(x: np.ndarray) -> float:
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.cov(x, rowvar=False)))
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


ORACLES: dict[str, Callable[[np.ndarray], float]] = {
    "anisotropy": mean_cosine,
    "intrinsic_dimension": dimension_of_covariance,
    "dead_units": lambda x: np.mean(np.ptp(x, axis=0) == 0),
}


def test_every_one_has_closed_forms_and_an_oracle_and_is_of_activations() -> None:
    assert set(NAMES) == set(CLOSED) == set(ORACLES)
    assert {METRICS[name].kinds for name in NAMES} == {("activations",)}


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(3, 12), st.integers(1, 15), st.integers(0, 3))
def test_equals_the_definition(name: str, seed: int, rows: int, width: int, dead: int) -> None:
    x = torch.cat([drawn(seed, rows, width) + drawn(seed + 1, 1, width), torch.zeros(rows, dead)], dim=1)
    value = of(name, x).value
    assert value == pytest.approx(ORACLES[name](x.numpy()), rel=1e-9, abs=1e-12)
    low, high = METRICS[name].range.strip("[]").split(", ")
    assert float(low) - 1e-12 <= value <= float({"k": min(rows, width)}.get(high, high)) * (1 + 1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_scale_and_order_of_rows_and_neurons_do_not_matter(name: str, seed: int) -> None:
    x = torch.cat([drawn(seed, 12, 9) + 1, torch.ones(12, 2)], dim=1)
    rows, neurons = drawn(seed + 1, 12, 1).argsort(dim=0)[:, 0], drawn(seed + 2, 11, 1).argsort(dim=0)[:, 0]
    assert of(name, -7 * x[rows][:, neurons]).value == pytest.approx(of(name, x).value, rel=1e-9)


@pytest.mark.parametrize("name", ["anisotropy", "intrinsic_dimension"])
@pytest.mark.parametrize("seed", range(4))
def test_turns_do_not_matter(name: str, seed: int) -> None:
    x = drawn(seed, 12, 9) + 1
    turn = torch.linalg.qr(drawn(seed + 1, 9, 9)).Q
    assert of(name, x @ turn).value == pytest.approx(of(name, x).value, rel=1e-9)


def test_a_common_part_makes_rows_alike_and_adds_no_dimension() -> None:
    x = drawn(0, 200, 10)
    assert of("anisotropy", x).value == pytest.approx(0, abs=0.02)
    assert of("anisotropy", x + 10).value > 0.9
    assert of("intrinsic_dimension", x + 10).value == pytest.approx(of("intrinsic_dimension", x).value)
    assert of("anisotropy", x * torch.arange(1, 201)[:, None]).value == pytest.approx(of("anisotropy", x).value)


def test_small_variation_around_a_large_mean_is_alive() -> None:
    x = 1e6 + 1e-3 * drawn(0, 32, 4)
    assert of("dead_units", x).value == 0
    assert of("intrinsic_dimension", x).value == pytest.approx(of("intrinsic_dimension", x - 1e6).value, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_products_are_taken_as_the_matrix_they_stand_for(name: str) -> None:
    product = FactoredMatrix(drawn(0, 12, 3), drawn(1, 3, 8))
    assert of(name, product).value == pytest.approx(of(name, product.dense()).value)
