"""Samples: centring, and products of two of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze.linalg.sample import Sample, cross

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("constant", [0.1, -1e6 / 3, 1e-30])
@pytest.mark.parametrize("rows", [3, 33, 1000])
def test_constant_columns_centre_to_exactly_zero(constant: float, rows: int) -> None:
    x = torch.stack([torch.full((rows,), constant, dtype=torch.float64), torch.arange(rows, dtype=torch.float64)], 1)
    centred = Sample.of(x).x
    assert (centred[:, 0] == 0).all()
    torch.testing.assert_close(centred[:, 1], torch.arange(rows, dtype=torch.float64) - (rows - 1) / 2)


def test_small_variation_around_a_large_mean_is_kept() -> None:
    x = 1e6 + 1e-3 * drawn(0, 32, 4, dtype=torch.float64)
    assert (Sample.of(x).x.abs().amax(dim=0) > 0).all()


@settings(deadline=None)
@given(seeds, st.integers(2, 12), sizes, sizes)
def test_cross_is_the_trace_of_the_product_of_grams(seed: int, rows: int, p: int, q: int) -> None:
    """Also where a width exceeds the rows, which takes the other of its two forms."""
    a, b = Sample.of(drawn(seed, rows, p)), Sample.of(drawn(seed + 1, rows, q))
    x, y = a.x.numpy(), b.x.numpy()
    assert cross(a, b) == pytest.approx(np.trace(x @ x.T @ y @ y.T), rel=1e-9, abs=1e-9)
