"""SVCCA, PWCCA, Procrustes and the overlap of subspaces: closed forms, definitions by other routes, refusals."""

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
from pico_analyze.metrics.pair import procrustes, pwcca, subspace_overlap, svcca
from pico_analyze.metrics.single import Outcome

REFUSED = Outcome(None, "n_less_than_d")
seeds = st.integers(0, 2**32 - 1)


def of(name: str, x: torch.Tensor | FactoredMatrix, y: torch.Tensor | FactoredMatrix, **parameters: float) -> Outcome:
    return METRICS[name].fn(Sample.of(x), Sample.of(y), **{**METRICS[name].parameters, **parameters})


def drawn(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(seed: int, width: int) -> torch.Tensor:
    return torch.linalg.qr(drawn(seed, width, width)).Q


def hadamard(*columns: int, sizes: tuple[float, ...] = ()) -> torch.Tensor:
    """Columns of +-1 times `sizes`, 8 rows, of mean 0 and orthogonal to each other."""
    x = torch.from_numpy(scipy.linalg.hadamard(8)[:, list(columns)].astype(np.float64))
    return x * torch.tensor(sizes) if sizes else x


@pytest.mark.parametrize(
    ("name", "x", "y", "expected"),
    [
        ("svcca", hadamard(1, 2), hadamard(3, 4), 0),
        ("svcca", hadamard(1, 2), hadamard(2, 3), 1 / 2),
        ("svcca", hadamard(1), hadamard(1, 2), 1),
        ("svcca", hadamard(1) + hadamard(2), hadamard(2), 2**-0.5),
        ("svcca", hadamard(1, 2, sizes=(11, 1)), hadamard(1), 1),  # 1 / 122 of the variance is left out
        ("svcca", hadamard(2, 1, sizes=(11, 1)), hadamard(1), 0),
        ("svcca", hadamard(2, 1, sizes=(9, 1)), hadamard(1), 1),  # 1 / 82 is not
        ("pwcca", hadamard(1, 2), hadamard(3, 4), 0),
        ("pwcca", hadamard(1, 2, sizes=(3, 1)), hadamard(2, 3), 1 / 4),
        ("pwcca", hadamard(2, 3), hadamard(1, 2, sizes=(3, 1)), 1 / 2),
        ("pwcca", hadamard(1, 2, sizes=(3, 1)) + 7, hadamard(2), 1),
        ("procrustes", hadamard(1, 2), hadamard(3, 4), 0),
        ("procrustes", hadamard(1, 2), hadamard(2, 3), 1 / 2),
        ("procrustes", hadamard(1), hadamard(1, 2), 2**-0.5),
        ("procrustes", hadamard(1, 2, sizes=(3, 1)), hadamard(1, 2), 4 / 20**0.5),
        ("subspace_overlap", hadamard(1, 2, 3, sizes=(3, 2, 1)), hadamard(1, 4, 5, sizes=(3, 2, 1)), 1 / 3),
        ("subspace_overlap", hadamard(1) + hadamard(2), hadamard(2), 1 / 2),
    ],
)
def test_closed_form(name: str, x: torch.Tensor, y: torch.Tensor, expected: float) -> None:
    assert of(name, x, y) == Outcome(pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize(("k", "expected"), [(1, 1), (2, 1 / 2), (3, 1 / 3), (4, 1 / 3)])
def test_overlap_is_of_the_k_leading_directions(k: int, expected: float) -> None:
    x, y = hadamard(1, 2, 3, sizes=(3, 2, 1)), hadamard(1, 4, 5, sizes=(3, 2, 1))
    assert of("subspace_overlap", x, y, k=k).value == pytest.approx(expected)


def canonical(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Canonical directions of centred x in the rows, and correlations, by whitening the covariances."""
    white_x, white_y = (z @ np.linalg.inv(scipy.linalg.sqrtm(z.T @ z)) for z in (x, y))
    turned, correlations, _ = np.linalg.svd(white_x.T @ white_y, full_matrices=False)
    return white_x @ turned, correlations


def by_projection(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    directions, correlations = canonical(x, y)
    weights = np.array([sum(abs(direction @ neuron) for neuron in x.T) for direction in directions.T])
    return float((weights * correlations).sum() / weights.sum())


def principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the principal components and their variances, largest first."""
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False).reshape(x.shape[1], -1))
    return (x - x.mean(0)) @ vectors[:, ::-1], values[::-1]


def of_99_percent(x: np.ndarray, y: np.ndarray) -> float:
    kept = []
    for scores, variances in (principal(x), principal(y)):
        d = next(d for d in range(1, len(variances) + 1) if variances[:d].sum() >= 0.99 * variances.sum())
        kept.append(scores[:, :d])
    return float(np.cos(scipy.linalg.subspace_angles(*kept)).mean())


def of_best_map(x: np.ndarray, y: np.ndarray) -> float:
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z - z.mean(0), ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    best, _ = scipy.linalg.orthogonal_procrustes(x, y)
    return 1 - float(np.linalg.norm(x @ best - y) ** 2) / 2


def of_angles(x: np.ndarray, y: np.ndarray) -> float:
    k = min(10, x.shape[1], y.shape[1])
    leading = [principal(z)[0][:, :k] for z in (x, y)]
    return float((np.cos(scipy.linalg.subspace_angles(*leading)) ** 2).mean())


ORACLES = {"svcca": of_99_percent, "pwcca": by_projection, "procrustes": of_best_map, "subspace_overlap": of_angles}


@pytest.mark.parametrize("name", ORACLES)
@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(40, 60), st.integers(1, 15), st.integers(1, 15))
def test_equals_the_definition(name: str, seed: int, rows: int, p: int, q: int) -> None:
    x = drawn(seed, rows, p) + 3
    y = torch.cat([x[:, : q // 2] + 0.3 * drawn(seed + 2, rows, p)[:, : q // 2], drawn(seed + 1, rows, q)], dim=1)
    for a, b in ((x, y), (y, x)):
        assert of(name, a, b) == Outcome(pytest.approx(ORACLES[name](a.numpy(), b.numpy()), rel=1e-6, abs=1e-9))


@pytest.mark.parametrize(("p", "q"), [(10, 20), (20, 10)])
@pytest.mark.parametrize("seed", range(3))
def test_pwcca_weighs_the_side_that_is_explained_whichever_is_wider(p: int, q: int, seed: int) -> None:
    x, y = drawn(seed, 64, p), drawn(seed + 1, 64, q)
    y[:, :5] += x[:, :5] * torch.arange(1, 6)
    x[:, 0] *= 10
    assert of("pwcca", x, y).value == pytest.approx(by_projection(x.numpy(), y.numpy()), rel=1e-9)
    assert of("pwcca", x, y).value != pytest.approx(of("pwcca", y, x).value, rel=1e-3)


@pytest.mark.parametrize("fn", [svcca, pwcca, procrustes, subspace_overlap])
@pytest.mark.parametrize("seed", range(3))
def test_a_turned_and_scaled_sample_is_the_same(fn: object, seed: int) -> None:
    x = drawn(seed, 40, 20) @ torch.diag(0.7 ** torch.arange(20.0).double())
    assert fn(Sample.of(x), Sample.of(-3 * x @ turn(seed + 1, 20) + 5)).value == pytest.approx(1, abs=1e-9)


def test_pwcca_does_not_change_under_linear_maps_of_what_explains() -> None:
    x, y = drawn(0, 60, 10), drawn(1, 60, 12) + drawn(0, 60, 10) @ drawn(2, 10, 12)
    expected = of("pwcca", x, y).value
    assert of("pwcca", x, y @ drawn(3, 12, 12)).value == pytest.approx(expected, rel=1e-8)
    assert of("pwcca", x @ drawn(4, 10, 10), y).value != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("width", [31, 32, 40])
def test_subspaces_that_fill_all_rows_are_refused(width: int) -> None:
    x, y = drawn(0, 32, width), drawn(1, 32, 5)
    for a, b in ((x, y), (y, x), (x, x)):
        assert of("pwcca", a, b) == REFUSED
        assert of("svcca", a, b, variance=1.0) == REFUSED
    assert of("subspace_overlap", x, x, k=31) == REFUSED
    assert of("pwcca", drawn(0, 32, 25), y).status == "ok"


def test_wide_samples_of_low_rank_are_not_refused() -> None:
    """A circuit's output in the residual stream, and a projection upwards stored in float32: the rank counts."""
    left, right, y = drawn(0, 48, 6), drawn(1, 6, 200), drawn(2, 48, 4) + drawn(0, 48, 4)
    product = FactoredMatrix(left, right)
    expected = of("pwcca", product, y)
    assert expected.status == "ok"
    assert len(Sample.of(product).basis.values) == 6
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)):
        stored = product.dense().to(dtype)
        assert len(Sample.of(stored).basis.values) == 6
        assert of("pwcca", stored, y).value == pytest.approx(expected.value, abs=close)


def test_rounding_at_a_large_mean_is_no_direction() -> None:
    x = (1000 + drawn(0, 48, 3) @ drawn(1, 3, 100)).float()
    assert len(Sample.of(x).basis.values) == 3


def test_a_basis_is_that_of_the_centred_sample() -> None:
    for rows, width in ((20, 8), (8, 20)):
        sample = Sample.of(drawn(0, rows, width) + 2)
        left, values, right = sample.basis
        torch.testing.assert_close((left * values) @ right, sample.x)
        torch.testing.assert_close(left.T @ left, torch.eye(len(values), dtype=torch.float64))
        torch.testing.assert_close(right @ right.T, torch.eye(len(values), dtype=torch.float64))
        assert len(values) == min(rows - 1, width)


def test_one_decomposition_of_a_sample_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = Sample.of(drawn(0, 40, 30)), Sample.of(drawn(1, 40, 30))
    decomposed: list[tuple[int, ...]] = []
    original = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda a, **k: (decomposed.append(tuple(a.shape)), original(a, **k))[1])
    for fn in (svcca, procrustes, subspace_overlap, svcca):
        fn(x, y)
    assert decomposed == [(40, 30), (40, 30)]
