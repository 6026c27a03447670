"""Metrics of one matrix where numbers are extreme: what underflows, what is numerically zero, what is long."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pico_analyze import linalg
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.single import Outcome

DEFICIENT = Outcome(None, "rank_deficient")


def of(name: str, matrix: torch.Tensor) -> Outcome:
    given = linalg.spectra([matrix])[0] if METRICS[name].needs == "spectrum" else linalg.entries(matrix)
    return METRICS[name].fn(given, **METRICS[name].parameters)


def test_entropy_of_a_numerically_singular_matrix_is_a_number() -> None:
    """Singular values of 0, and those that underflow when divided by the sum."""
    for values in ([1.0, 0.0], [1.0, 5e-324], [1e308, 1e-308]):
        outcome = of("per", torch.diag(torch.tensor(values, dtype=torch.float64)))
        assert outcome == Outcome(pytest.approx(0.5), "ok")


def test_effective_condition_number_stops_at_the_tolerance() -> None:
    matrix = torch.diag(torch.tensor([8.0, 2.0, 1e-9]))
    assert of("condition_number", matrix) == DEFICIENT
    assert of("effective_condition_number", matrix).value == pytest.approx(4)
    assert of("condition_number", matrix.double()).value == pytest.approx(8e9)


def test_gini_sums_many_entries_in_float64() -> None:
    """2^20 entries: bfloat16 sums stop at 256 and float32 indices times values lose digits."""
    n = 2**20
    half = torch.cat([torch.zeros(n // 2), torch.ones(n // 2)]).to(torch.bfloat16)
    assert of("gini", half).value == pytest.approx(0.5, abs=1e-12)
    x = torch.rand(n, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    a = np.sort(x.double().numpy())
    lorenz = np.cumsum(a) / a.sum()  # the area between the diagonal and the Lorenz curve, doubled
    assert of("gini", x).value == pytest.approx(1 - (2 * lorenz.sum() - 1) / n, abs=1e-12)


def test_entry_metrics_take_vectors() -> None:
    vector = torch.tensor([3.0, 0.0, -4.0, 0.0])
    assert of("max_abs", vector).value == 4
    assert of("gini", vector).value == pytest.approx((3 * 1 + 4 * 3) / (4 * 7))
    assert of("hoyer", vector).value == pytest.approx(2 - 7 / 5)
    assert of("kurtosis", vector).value == pytest.approx(np.mean((vector.numpy() + 0.25) ** 4) / 6.1875**2 - 3)
    assert of("near_zero_share", vector).value == 1 / 2


@pytest.mark.parametrize("name", ["participation_ratio", "spectral_entropy", "kurtosis", "near_zero_share"])
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_powers_of_extreme_entries_neither_overflow_nor_vanish(name: str, scale: float) -> None:
    matrix = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix[0, :3] = 1e-3
    assert of(name, scale * matrix).value == pytest.approx(of(name, matrix).value)


def test_kurtosis_and_near_zeros_of_normal_entries() -> None:
    """0, and the share erf(0.01 / sqrt 2) = 0.00798, up to sampling."""
    x = torch.randn(2**20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert of("kurtosis", x).value == pytest.approx(0, abs=0.03)
    assert of("near_zero_share", x).value == pytest.approx(0.00798, abs=0.0005)
    assert of("kurtosis", 5 * x - 40).value == pytest.approx(of("kurtosis", x).value)
    assert of("kurtosis", torch.full((33,), 0.1)) == Outcome(None, "zero")
