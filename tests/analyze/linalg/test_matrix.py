"""Spectra, the tolerance policy, products of factors and centred samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze.linalg import FactoredMatrix, Spectrum, is_finite, spectra
from pico_analyze.metrics.single import condition_number, numerical_rank, per

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def spectrum(matrix: torch.Tensor | FactoredMatrix) -> Spectrum:
    return spectra([matrix])[0]


@settings(deadline=None)
@given(seeds, sizes, sizes)
def test_singular_values_are_numpys(seed: int, m: int, n: int) -> None:
    matrix = drawn(seed, m, n)
    found = spectrum(matrix)
    np.testing.assert_allclose(found.values, np.linalg.svd(matrix.double().numpy(), compute_uv=False), atol=1e-12)
    assert found.shape == (m, n)
    assert found.full_rank == min(m, n)


@settings(deadline=None)
@given(seeds, sizes, sizes, sizes)
def test_product_has_the_spectrum_of_its_dense_matrix(seed: int, m: int, r: int, n: int) -> None:
    product = FactoredMatrix(drawn(seed, m, r), drawn(seed + 1, r, n))
    assert product.shape == (m, n)
    values = spectrum(product).values
    dense = np.linalg.svd(product.left.double().numpy() @ product.right.double().numpy(), compute_uv=False)
    assert len(values) <= r
    np.testing.assert_allclose(values[: min(m, n)], dense[: len(values)], atol=1e-11)
    np.testing.assert_allclose(dense[len(values) :], 0, atol=1e-11)


def test_product_of_full_rank_factors_is_rank_deficient_outside_its_inner_dimension() -> None:
    found = spectrum(FactoredMatrix(drawn(0, 20, 3), drawn(1, 3, 15)))
    assert numerical_rank(found).value == 3
    assert condition_number(found) == (None, "rank_deficient")
    assert per(found).value == pytest.approx(per(spectrum(drawn(0, 20, 3) @ drawn(1, 3, 15))).value, abs=1e-6)


def test_spectra_keep_the_order_of_a_mixture_of_shapes_and_products() -> None:
    matrices = [
        drawn(0, 4, 6),
        FactoredMatrix(drawn(1, 5, 2), drawn(2, 2, 7)),
        drawn(3, 6, 4),
        drawn(4, 4, 6),
        FactoredMatrix(drawn(5, 5, 2), drawn(6, 2, 7)),
        FactoredMatrix(drawn(7, 5, 3), drawn(8, 3, 7)),
    ]
    for found, matrix in zip(spectra(matrices), matrices, strict=True):
        alone = spectrum(matrix)
        assert found.shape == alone.shape == tuple(matrix.shape)
        np.testing.assert_allclose(found.values, alone.values, atol=1e-12)


def test_finite_looks_at_both_factors() -> None:
    good, bad = torch.ones(2, 2), torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    assert is_finite(good)
    assert is_finite(FactoredMatrix(good, good))
    assert not is_finite(torch.tensor([float("-inf")]))
    assert not is_finite(FactoredMatrix(bad, good))
    assert not is_finite(FactoredMatrix(good, bad))
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16):
        assert is_finite(good.to(dtype))
        assert not is_finite(bad.to(dtype))


def test_a_product_is_as_exact_as_its_coarser_factor() -> None:
    left, right = drawn(1, 6, 2), drawn(2, 2, 5)
    assert FactoredMatrix(left.bfloat16(), right.float()).dtype == torch.bfloat16
    assert FactoredMatrix(left.float(), right.half()).dtype == torch.float16
    assert FactoredMatrix(left.float(), right.double()).dtype == torch.float32
