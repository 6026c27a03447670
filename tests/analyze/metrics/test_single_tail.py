"""The heavy-tail exponent of a spectrum and its goodness of fit: closed forms, loops from the definition, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze.linalg import FactoredMatrix, Spectrum, spectra
from pico_analyze.metrics.single import Outcome, heavy_tail_exponent, heavy_tail_ks

seeds = st.integers(0, 2**32 - 1)
TOO_FEW = Outcome(None, "too_few")


def spectrum_of(eigenvalues: np.ndarray) -> Spectrum:
    values = torch.from_numpy(np.sort(eigenvalues)[::-1].copy()).sqrt()
    return Spectrum(values, (len(values), len(values)), torch.float64)


def pareto(seed: int, n: int, exponent: float) -> np.ndarray:
    """n draws of the density ~ x^-exponent, x >= 1."""
    return (1 - np.random.default_rng(seed).random(n)) ** (1 / (1 - exponent))


def by_loops(eigenvalues: np.ndarray) -> tuple[float, float]:
    """Exponent and distance: every value as x_min, scipy's Kolmogorov-Smirnov distance of each fit."""
    fits = []
    for least in np.unique(eigenvalues)[:-1]:
        tail = eigenvalues[eigenvalues >= least]
        exponent = 1 + len(tail) / np.log(tail / least).sum()
        with np.errstate(over="ignore"):
            law = scipy.stats.pareto(b=exponent - 1, scale=least)
            fits.append((scipy.stats.ks_1samp(tail, law.cdf).statistic, exponent))
    distance, exponent = min(fits)
    return exponent, distance


@settings(deadline=None, max_examples=10)
@given(seeds, st.integers(50, 90), st.sampled_from([1.5, 2.5, 6.0]))
def test_equals_the_definition_on_power_laws_with_a_body(seed: int, n: int, exponent: float) -> None:
    eigenvalues = np.concatenate([np.random.default_rng(seed + 1).random(n // 3), pareto(seed, n - n // 3, exponent)])
    spectrum = spectrum_of(eigenvalues)
    expected = by_loops(eigenvalues)
    assert heavy_tail_exponent(spectrum) == Outcome(pytest.approx(expected[0], rel=1e-9))
    assert heavy_tail_ks(spectrum) == Outcome(pytest.approx(expected[1], rel=1e-9))


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition_on_more_values_than_one_block(seed: int) -> None:
    matrix = torch.randn(300, 280, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = by_loops(np.linalg.eigvalsh((matrix.T @ matrix).numpy()))
    (spectrum,) = spectra([matrix])
    assert heavy_tail_exponent(spectrum).value == pytest.approx(expected[0], rel=1e-9)
    assert heavy_tail_ks(spectrum).value == pytest.approx(expected[1], rel=1e-9)


def test_equals_the_definition_where_values_repeat() -> None:
    eigenvalues = np.repeat(pareto(0, 30, 2.0), 3)
    spectrum = spectrum_of(eigenvalues)
    assert heavy_tail_exponent(spectrum).value == pytest.approx(by_loops(eigenvalues)[0])
    assert heavy_tail_ks(spectrum).value == pytest.approx(by_loops(eigenvalues)[1])


def test_closed_form_of_a_geometric_spectrum() -> None:
    """50 values q^i: the mean of ln(x / x_min) is 24.5 ln q, and the whole is what a power law fits best."""
    for q in (1.1, 3.0):
        spectrum = spectrum_of(q ** np.arange(50.0))
        assert heavy_tail_exponent(spectrum).value == pytest.approx(1 + 1 / (24.5 * math.log(q)))
        assert heavy_tail_ks(spectrum).value == pytest.approx(ks_of_geometric())


def ks_of_geometric() -> float:
    """Shares above value i (from below) are exp(-i / 24.5) in the fit, (50 - i) / 50 and (49 - i) / 50 in the data."""
    i = np.arange(50)
    fitted = np.exp(-i / 24.5)
    return float(max(np.abs(fitted - (50 - i) / 50).max(), np.abs(fitted - (49 - i) / 50).max()))


@pytest.mark.parametrize("exponent", [1.8, 2.5, 4.0])
def test_recovers_the_exponent_of_a_power_law_and_fits_better_than_to_another(exponent: float) -> None:
    law = spectrum_of(pareto(0, 3000, exponent))
    other = spectrum_of(np.random.default_rng(0).random(3000) ** 3)
    assert heavy_tail_exponent(law).value == pytest.approx(exponent, rel=0.06)
    assert heavy_tail_ks(law).value < 0.02 < heavy_tail_ks(other).value


def test_the_body_below_the_tail_is_left_out() -> None:
    body = 1 - 0.9 * np.random.default_rng(1).random(3000) ** 2
    fit = spectrum_of(np.concatenate([body, pareto(0, 1000, 2.5)])).power_law
    assert fit is not None
    assert fit.exponent == pytest.approx(2.5, rel=0.08)
    assert fit.tail < 1200
    assert fit.least > 0.9


@settings(deadline=None, max_examples=15)
@given(seeds, st.sampled_from([1e-12, -3.0, 1e12]))
def test_does_not_change_under_orthogonal_maps_scales_and_transposition(seed: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(55, 70, generator=draw, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(55, 55, generator=draw, dtype=torch.float64)).Q
    before, *after = spectra([matrix, turn @ matrix, scale * matrix, matrix.T])
    for spectrum in after:
        assert heavy_tail_exponent(spectrum).value == pytest.approx(heavy_tail_exponent(before).value, rel=1e-6)
        assert heavy_tail_ks(spectrum).value == pytest.approx(heavy_tail_ks(before).value, rel=1e-6)


def test_too_few_values_are_refused() -> None:
    few, enough = (spectrum_of(pareto(0, n, 2.5)) for n in (49, 50))
    low = FactoredMatrix(torch.randn(60, 40), torch.randn(40, 60))
    for spectrum in (few, *spectra([low, low.dense(), torch.randn(49, 500)])):
        assert heavy_tail_exponent(spectrum) == heavy_tail_ks(spectrum) == TOO_FEW
    assert heavy_tail_exponent(enough).status == heavy_tail_ks(enough).status == "ok"


def test_values_that_are_all_equal_have_no_tail() -> None:
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    for spectrum in spectra([torch.eye(64), 1e-5 * turn, -7 * turn]):
        assert heavy_tail_exponent(spectrum) == heavy_tail_ks(spectrum) == TOO_FEW


def test_the_zero_matrix_has_no_tail() -> None:
    (spectrum,) = spectra([torch.zeros(64, 64)])
    assert heavy_tail_exponent(spectrum) == heavy_tail_ks(spectrum) == Outcome(None, "zero")
