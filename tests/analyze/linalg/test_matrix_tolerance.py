"""What rounding can have done: tolerances by dtype, of matrices, products, sums and differences, and what they tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pico_analyze import linalg
from pico_analyze.linalg import FactoredMatrix, Matrix, Spectrum, difference, spectra, storage_error
from pico_analyze.linalg.sample import Sample
from pico_analyze.metrics.single import Outcome, condition_number, effective_condition_number, numerical_rank

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def of(matrix: Matrix) -> Spectrum:
    return spectra([matrix])[0]


def by_hand(w: np.ndarray, dtype: torch.dtype) -> float:
    """max(u ||W||_F + sqrt(m n) eta / 2, max(m, n) 2^-52 s_max)."""
    limits = torch.finfo(dtype)
    stored = limits.eps / 2 * np.linalg.norm(w) + math.sqrt(w.size) * limits.smallest_normal * limits.eps / 2
    return max(float(stored), max(w.shape) * 2.0**-52 * float(np.linalg.norm(w, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 12), (40, 40), (200, 3)])
def test_the_tolerance_is_that_of_the_definition(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    matrix = drawn(0, *shape).clamp(-3, 3).to(dtype)
    found = of(matrix)
    assert (found.dtype, found.shape) == (dtype, shape)
    assert found.tol == pytest.approx(by_hand(matrix.double().numpy(), dtype), rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 1e-3, 3e-6])
def test_rounding_moves_no_singular_value_by_more(dtype: torch.dtype, size: float) -> None:
    """At 3e-6 float16 is below its normal range, where rounding is absolute; the formats of 8 bits end before."""
    exact = size * drawn(1, 48, 48).clamp(-3, 3)
    stored = exact.to(dtype)
    moved = (torch.linalg.svdvals(exact) - torch.linalg.svdvals(stored.double())).abs().max()
    rounding = torch.finfo(dtype).eps * size if dtype == torch.float64 else 0.0  # of the oracle's own
    assert float(moved) <= storage_error(stored) + 50 * rounding
    assert torch.linalg.matrix_norm(exact - stored.double(), 2) <= storage_error(stored)


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.eye(512, dtype=torch.bfloat16), 512),
        (torch.eye(2048, dtype=torch.float16), 2048),
        (drawn(0, 1024, 8, dtype=torch.float16), 8),
        (drawn(0, 60, 4) @ drawn(1, 4, 60), 4),
        (drawn(2, 300, 4) @ drawn(3, 4, 200), 4),
        ((drawn(4, 96, 5) @ drawn(5, 5, 96)).float(), 5),
        (1e-200 * drawn(0, 60, 4) @ drawn(1, 4, 60), 4),
        (1e200 * drawn(0, 60, 4) @ drawn(1, 4, 60), 4),
        (1e-30 * drawn(6, 30, 30, dtype=torch.float32), 30),
        (2.0**-20 * torch.eye(30, dtype=torch.float16), 30),  # 16 of the least subnormal
    ],
)
def test_numerical_ranks(matrix: torch.Tensor, rank: int) -> None:
    assert numerical_rank(of(matrix)) == Outcome(rank)


def test_random_bfloat16_has_nearly_full_rank() -> None:
    """Of 128 x 128 the least singular value is about 1 / sqrt(128) of an entry; the tolerance is u ||W||_F = 0.5."""
    matrix = drawn(0, 128, 128, dtype=torch.bfloat16)
    assert 120 <= numerical_rank(of(matrix)).value <= 128
    assert effective_condition_number(of(matrix)).status == "ok"
    assert condition_number(of(matrix)).status == "rank_deficient"


@pytest.mark.parametrize("side", [2**16 - 1, 2**16])
def test_an_identity_of_bfloat16_has_full_rank_below_65536_rows(side: int) -> None:
    spectrum = Spectrum(torch.ones(side, dtype=torch.float64), (side, side), torch.bfloat16)
    full = side < 2**16
    assert numerical_rank(spectrum) == (Outcome(side) if full else Outcome(0, "within_rounding"))
    assert condition_number(spectrum) == (Outcome(1) if full else Outcome(None, "rank_deficient"))
    assert effective_condition_number(spectrum) == (Outcome(1) if full else Outcome(None, "within_rounding"))


def test_zero_is_said_of_the_zero_matrix_alone() -> None:
    least = torch.zeros(8, 8, dtype=torch.float16)
    least[0, 0] = 2.0**-24
    for metric, value in ((numerical_rank, 0), (effective_condition_number, None)):
        assert metric(of(torch.zeros(8, 8, dtype=torch.float16))) == Outcome(value, "zero")
        assert metric(of(least)) == Outcome(value, "within_rounding")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "rank"), [(1e-3, 16), (1e-5, 1)])
def test_a_merged_update_has_the_rank_of_its_factors(seed: int, size: float, rank: int) -> None:
    """Rounding of the merged weight fills all 96 directions, at the scale of the weight and not of the update."""
    weight = drawn(seed, 96, 96, dtype=torch.float32)
    update = (size * drawn(seed + 10, 96, rank) @ drawn(seed + 20, rank, 96)).float()
    merged = weight + update
    values = of(difference(merged, weight)).values
    judged = Spectrum(values, (96, 96), torch.float32, storage_error(weight) + storage_error(merged))
    assert numerical_rank(judged).value == rank
    assert numerical_rank(Spectrum(values, (96, 96), torch.float64)).value == 96


def norms(x: torch.Tensor) -> tuple[float, float]:
    return float(x.double().norm()), float(torch.linalg.matrix_norm(x.double(), 2))


@pytest.mark.parametrize(("left", "right"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_a_product_is_known_as_well_as_its_factors(left: torch.dtype, right: torch.dtype) -> None:
    o, v = drawn(0, 40, 4, dtype=left), drawn(1, 4, 30, dtype=right)
    (o_f, o_2), (v_f, v_2) = norms(o), norms(v)
    expected = torch.finfo(left).eps / 2 * o_f * v_2 + torch.finfo(right).eps / 2 * o_2 * v_f
    assert of(FactoredMatrix(o, v)).tol == pytest.approx(expected, rel=1e-9)
    assert of(FactoredMatrix(o, v).times(-3)).tol == pytest.approx(3 * expected, rel=1e-9)
    assert of(FactoredMatrix(o, v)).dtype == left


def test_the_tolerance_of_a_product_covers_the_rounding_of_its_factors() -> None:
    o, v = drawn(0, 40, 8), drawn(1, 8, 30)
    stored = FactoredMatrix(o.bfloat16(), v.bfloat16())
    assert torch.linalg.matrix_norm(o @ v - stored.dense(), 2) < of(stored).tol


def test_tolerances_of_sums_and_differences_add() -> None:
    """Of dO V + O dV, dO small: as one product of stacked factors it would be judged as if all were as large as O."""
    o, v = drawn(0, 40, 4, dtype=torch.float32), drawn(1, 4, 30, dtype=torch.float32)
    d_o, d_v = 1e-9 * drawn(2, 40, 4, dtype=torch.float32), 1e-9 * drawn(3, 4, 30, dtype=torch.float32)
    terms = FactoredMatrix(d_o, v), FactoredMatrix(o, d_v)
    change = of(FactoredMatrix.sum_of(*terms))
    assert change.tol == pytest.approx(sum(of(term).tol for term in terms), rel=1e-9)
    assert numerical_rank(change).value == 8
    stacked = of(FactoredMatrix(torch.cat([d_o, o], 1), torch.cat([v, d_v])))
    assert numerical_rank(stacked).status == "within_rounding"
    apart = difference(FactoredMatrix(o, v), FactoredMatrix(d_o, v))
    assert of(apart).tol == pytest.approx(of(FactoredMatrix(o, v)).tol + of(terms[0]).tol, rel=1e-9)
    torch.testing.assert_close(linalg.norm(apart), float((o.double() @ v.double() - d_o.double() @ v.double()).norm()))


def test_what_was_merged_in_a_coarser_dtype_is_known_no_better() -> None:
    matrix = drawn(0, 20, 20, dtype=torch.float32)
    assert storage_error(matrix, torch.bfloat16) == pytest.approx(2**-8 * norms(matrix)[0], rel=1e-9)
    half = storage_error(matrix.half(), torch.bfloat16)
    assert half == pytest.approx(2**-8 * norms(matrix.half())[0] + 20 * 2.0**-25, rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_are_judged_by_the_same_tolerance(dtype: torch.dtype) -> None:
    """Rank 3 and rounding: the basis has what exceeds the storage error of the sample as it was stored."""
    x = (drawn(0, 64, 3) @ drawn(1, 3, 40)).clamp(-8, 8).to(dtype)
    sample = Sample.of(x)
    assert sample.noise == storage_error(x)
    values = np.linalg.svd(sample.x.numpy(), compute_uv=False)
    limit = max(sample.noise, 64 * 2.0**-52 * values[0])
    assert len(sample.basis.values) == int((values > limit).sum())


def test_a_sample_of_a_product_is_judged_by_its_factors() -> None:
    product = FactoredMatrix(drawn(0, 48, 6, dtype=torch.bfloat16), drawn(1, 6, 200, dtype=torch.bfloat16))
    assert Sample.of(product).noise == pytest.approx(storage_error(product), rel=1e-12)
    assert Sample.of(product).noise > 0
