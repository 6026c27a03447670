"""Comparisons entry by entry: the cosine of two tensors and their relative distance, also of circuits' factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze.linalg import FactoredMatrix
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.pair import cosine, relative_distance
from pico_analyze.metrics.single import Outcome

ENTRYWISE = {"cosine": cosine, "relative_distance": relative_distance}
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 9)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_these_are_the_entrywise_metrics_and_they_are_of_every_kind() -> None:
    found = {name: metric for name, metric in METRICS.items() if metric.arity == 2 and metric.needs == "matrix"}
    assert {name: metric.fn for name, metric in found.items()} == ENTRYWISE
    assert {metric.kinds for metric in found.values()} == {("weights", "gradients", "activations")}


@pytest.mark.parametrize(
    ("x", "y", "angle", "distance"),
    [
        ([[3.0, 4.0]], [[3.0, 4.0]], 1, 0),
        ([[3.0, 4.0]], [[-6.0, -8.0]], -1, 1.5),
        ([[3.0, 4.0]], [[4.0, -3.0]], 0, math.sqrt(2)),
        ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], 1 / math.sqrt(3), math.sqrt(2 / 3)),
        ([[0.0, 0.0]], [[2.0, 0.0]], Outcome(None, "zero"), 1),
        ([[2.0, 0.0]], [[0.0, 0.0]], Outcome(None, "zero"), Outcome(None, "zero")),
    ],
)
def test_closed_forms(x: list, y: list, angle: float | Outcome, distance: float | Outcome) -> None:
    for fn, expected in ((cosine, angle), (relative_distance, distance)):
        found = fn(torch.tensor(x), torch.tensor(y))
        assert found == (expected if isinstance(expected, Outcome) else Outcome(pytest.approx(expected, abs=1e-15)))


@settings(deadline=None, max_examples=30)
@given(seeds, sizes, sizes)
def test_equal_numpys_definition(seed: int, m: int, n: int) -> None:
    x, y = drawn(seed, m, n), drawn(seed + 1, m, n)
    a, b = x.numpy().ravel(), y.numpy().ravel()
    assert cosine(x, y).value == pytest.approx(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))
    assert relative_distance(x, y).value == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b))


@settings(deadline=None, max_examples=30)
@given(seeds, sizes, sizes, st.integers(1, 4), st.integers(1, 4))
def test_products_are_taken_as_the_matrices_they_stand_for(seed: int, m: int, n: int, r: int, q: int) -> None:
    x, y = (
        FactoredMatrix(drawn(seed, m, r), drawn(seed + 1, r, n)),
        FactoredMatrix(drawn(seed + 2, m, q), drawn(seed + 3, q, n)),
    )
    for fn in ENTRYWISE.values():
        assert fn(x, y).value == pytest.approx(fn(x.dense(), y.dense()).value, rel=1e-8, abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(seeds, sizes, sizes, st.sampled_from([1e-12, 0.5, 1e12]))
def test_turns_and_common_scales_change_nothing(seed: int, m: int, n: int, scale: float) -> None:
    x, y = drawn(seed, m, n), drawn(seed + 1, m, n)
    turn = torch.linalg.qr(drawn(seed + 2, n, n)).Q
    for fn in ENTRYWISE.values():
        assert fn(x @ turn, y @ turn).value == pytest.approx(fn(x, y).value, rel=1e-8, abs=1e-12)
        assert fn(scale * x, scale * y).value == pytest.approx(fn(x, y).value, rel=1e-9, abs=1e-12)
        assert fn(x.T, y.T).value == pytest.approx(fn(x, y).value, rel=1e-9, abs=1e-12)
    assert cosine(scale * x, y).value == pytest.approx(cosine(x, y).value, rel=1e-9, abs=1e-12)
    assert cosine(-x, y).value == pytest.approx(-cosine(x, y).value)


def test_distances_far_below_the_norm_keep_their_digits() -> None:
    """A difference of squared norms would give 0: the distance comes from the difference of the factors."""
    left, right = drawn(0, 30, 4), drawn(1, 4, 30)
    moved = FactoredMatrix(left, right * (1 + 1e-10))
    assert relative_distance(moved, FactoredMatrix(left, right)).value == pytest.approx(1e-10, rel=1e-4)
    assert relative_distance(moved.dense(), moved.dense() * (1 + 1e-10)).value == pytest.approx(1e-10, rel=1e-4)


def test_half_precision_is_compared_in_float64() -> None:
    x = torch.full((400, 400), 0.1, dtype=torch.bfloat16)
    assert cosine(x, x) == Outcome(pytest.approx(1, abs=1e-14))
    assert relative_distance(2 * x, x) == Outcome(pytest.approx(1, abs=1e-14))
