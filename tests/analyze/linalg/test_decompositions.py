"""Gram matrices where they are accurate enough, the SVD where they are not.

Tolerances: `GRAM_ERROR` bounds the relative error of the least singular value and the departure from orthogonality of
the least directions; what sums over values or weighs them by their size is far closer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze.linalg import FactoredMatrix, Spectrum, decompositions, spectra
from pico_analyze.linalg.decompositions import GRAM_ERROR, left_vectors
from pico_analyze.linalg.sample import Sample
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.pair import pwcca

SPECTRAL = [name for name, metric in METRICS.items() if metric.needs == "spectrum"]
shapes = st.sampled_from([(8, 8), (60, 60), (90, 20), (20, 90), (200, 64)])
seeds = st.integers(0, 2**32 - 1)


def orthonormal(generator: torch.Generator, rows: int, k: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64)).Q


def made(seed: int, shape: tuple[int, int], values: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A matrix of these singular values, but for rounding to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (orthonormal(generator, side, len(values)) for side in shape)
    return ((left * values) @ right.T).to(dtype)


def decades(k: int, spread: float, kind: str) -> torch.Tensor:
    """k values that fall over `spread` decades: evenly, in two groups of equal ones, or with the last half missing."""
    values = torch.logspace(0, -spread, k, dtype=torch.float64)
    if kind == "repeated":
        return torch.where(torch.arange(k) < k // 2, values[0], values[-1])
    return values[: max(1, k // 2)] if kind == "low rank" else values


def exact(matrix: torch.Tensor | FactoredMatrix) -> Spectrum:
    """By numpy's SVD of the dense matrix in float64; of a product as many values as its inner dimension."""
    dense = matrix.dense() if isinstance(matrix, FactoredMatrix) else matrix.double()
    values = torch.from_numpy(np.linalg.svd(dense.numpy(), compute_uv=False))
    kept = matrix.left.shape[1] if isinstance(matrix, FactoredMatrix) else len(values)
    return Spectrum(values[:kept].clone(), (dense.shape[0], dense.shape[1]), matrix.dtype)


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what goes through an SVD."""
    seen: list[tuple[int, ...]] = []

    def counting(fn: Callable[..., object]) -> Callable[..., object]:
        def counted(x: torch.Tensor, **options: bool) -> object:
            seen.append(tuple(x.shape))
            return fn(x, **options)

        return counted

    for name in ("svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, counting(getattr(torch.linalg, name)))
    return seen


def agree(found: Spectrum, expected: Spectrum) -> None:
    """Values above 1e-4 s_1 to `GRAM_ERROR`, all others to what the SVD itself resolves or the same; every metric."""
    np.testing.assert_allclose(found.values, expected.values, rtol=GRAM_ERROR, atol=1e-13 * expected.spectral_norm)
    for name in SPECTRAL:
        ours, numpys = METRICS[name].fn(found), METRICS[name].fn(expected)
        assert ours.status == numpys.status, name
        if numpys.value is not None:
            assert ours.value == pytest.approx(numpys.value, rel=2 * GRAM_ERROR, abs=1e-9), name


@settings(deadline=None, max_examples=60)
@given(seeds, shapes, st.floats(0, 12), st.sampled_from(["even", "repeated", "low rank"]))
def test_spectra_over_many_decades_are_numpys(seed: int, shape: tuple[int, int], spread: float, kind: str) -> None:
    matrix = made(seed, shape, decades(min(shape), spread, kind))
    agree(spectra([matrix])[0], exact(matrix))


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 24), st.floats(0, 3))
def test_products_over_many_decades_are_numpys(seed: int, r: int, spread: float) -> None:
    left = made(seed, (70, r), decades(r, spread, "even"))
    product = FactoredMatrix(left, made(seed + 1, (50, r), decades(r, spread, "even")).T.contiguous())
    found, expected = spectra([product])[0], exact(product)
    np.testing.assert_allclose(found.values, expected.values, rtol=GRAM_ERROR, atol=1e-13 * expected.spectral_norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_well_conditioned_matrix_needs_no_svd(decomposed: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    matrix = made(0, (60, 30), torch.logspace(0, -2, 30, dtype=torch.float64), dtype)
    _ = spectra([matrix])[0], Sample.of(matrix).basis
    assert decomposed == []


@pytest.mark.parametrize("least", [1e-5, 1e-9, 0.0])
def test_below_the_floor_of_the_gram_matrix_the_svd_is_taken(decomposed: list[tuple[int, ...]], least: float) -> None:
    """Of three matrices that are decomposed together, that one alone."""
    values = torch.ones(30, dtype=torch.float64)
    hard = torch.zeros(60, 30).fill_diagonal_(1.0)
    hard[29, 29] = least
    others = [made(seed, (60, 30), values) for seed in (1, 2)]
    found = spectra([others[0], hard, others[1]])
    assert decomposed == [(1, 60, 30)]
    assert float(found[1].values[-1]) == pytest.approx(least, rel=1e-6)


def test_the_floor_is_where_the_documented_bound_puts_it(decomposed: list[tuple[int, ...]]) -> None:
    floor = math.sqrt(64**0.5 * torch.finfo(torch.float64).eps / GRAM_ERROR)
    for factor in (1.01, 0.99):
        matrix = torch.zeros(64, 2)
        matrix[0, 0], matrix[1, 1] = 1.0, factor * floor
        spectra([matrix])
    assert len(decomposed) == 1


def test_a_matrix_of_float64_is_decomposed_as_it_is(decomposed: list[tuple[int, ...]]) -> None:
    """Also a difference of two stored matrices, which is computed in float64."""
    matrix = made(0, (60, 30), torch.ones(30, dtype=torch.float64), torch.float64)
    _ = spectra([matrix]), Sample.of(matrix).basis
    assert decomposed == [(1, 60, 30), (60, 30)]


def test_the_gram_matrix_alone_would_fail_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a floor, what a rank-deficient matrix lacks comes out as values that a power law is fitted to."""
    half = made(0, (90, 60), torch.ones(60, dtype=torch.float64))
    matrix = torch.cat([half, half], dim=1)
    monkeypatch.setattr(decompositions, "_least_square", lambda _, largest: -largest)
    with pytest.raises(AssertionError):
        agree(spectra([matrix])[0], exact(matrix))
    monkeypatch.undo()
    agree(spectra([matrix])[0], exact(matrix))


@settings(deadline=None, max_examples=25)
@given(seeds, st.sampled_from([(60, 12), (40, 40), (30, 50)]), st.floats(0, 8), st.booleans())
def test_a_basis_is_orthonormal_and_makes_up_the_sample(
    seed: int, shape: tuple[int, int], spread: float, dead: bool
) -> None:
    """What is left out of it lies below the rounding of the stored dtype; a wide sample has rank rows - 1 at most."""
    matrix = made(seed, shape, decades(min(shape), spread, "even"))
    if dead:
        matrix[:, -3:] = 0
    sample = Sample.of(matrix)
    left, values, right = sample.basis
    expected = np.linalg.svd(sample.x.numpy(), compute_uv=False)
    np.testing.assert_allclose(values.sort(descending=True).values, expected[: len(values)], rtol=GRAM_ERROR)
    assert len(values) == int((expected > sample.noise).sum())
    for one in (left.T, right):
        np.testing.assert_allclose(one @ one.T, np.eye(len(values)), atol=4 * GRAM_ERROR)
    torch.testing.assert_close((left * values) @ right, sample.x, rtol=0, atol=1.1 * sample.noise)


@settings(deadline=None, max_examples=40)
@given(seeds, st.sampled_from([(20, 20), (20, 35), (35, 20)]), st.floats(0, 12))
def test_left_vectors_are_those_of_the_svd(seed: int, shape: tuple[int, int], spread: float) -> None:
    values = decades(min(shape), spread, "even")
    matrix = made(seed, shape, values, torch.float64)
    left, found = left_vectors(matrix)
    np.testing.assert_allclose(found, values, rtol=GRAM_ERROR, atol=1e-14)
    np.testing.assert_allclose(left.T @ left, np.eye(20 if shape[0] == 20 else len(values)), atol=1e-12)
    np.testing.assert_allclose(torch.linalg.vector_norm(left.T @ matrix, dim=1), found, rtol=1e-6, atol=1e-14)


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(0, 4))
def test_pwcca_of_fp32_is_that_of_its_float64_copy(seed: int, spread: float) -> None:
    """The copy takes the SVD. Directions are weighed by their size, so the least accurate ones count least."""
    x, y = (made(seed + i, (120, 16), decades(16, spread, "even")) for i in (0, 1))
    through_gram = pwcca(Sample.of(x), Sample.of(y)).value
    assert through_gram == pytest.approx(pwcca(Sample.of(x.double()), Sample.of(y.double())).value, abs=1e-7)


def test_similarity_with_itself_is_1_where_a_sample_is_hardly_accurate_enough() -> None:
    x = Sample.of(made(3, (120, 16), torch.logspace(0, -4, 16, dtype=torch.float64)))
    assert pwcca(x, x).value == pytest.approx(1, abs=GRAM_ERROR)
