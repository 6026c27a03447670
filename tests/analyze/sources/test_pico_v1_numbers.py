"""The 12,204 numbers that pico-analyze 1.0 printed for a run of pico-train 1.0, beside ours: docs/legacy_numbers.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from pico_analyze import measure
from pico_analyze.linalg import spectra
from pico_analyze.metrics import METRICS
from pico_analyze.sources.pico_v1 import LegacyRun, open_legacy

from ...support import pico_v1_numbers
from ...support.pico_v1_numbers import ELEMENTWISE, EPS, GROUPS, LAST, OURS, Number, Values, group_of, key_of, relative

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

HEADS = 12


@pytest.fixture(scope="module")
def place() -> Path:
    return pico_v1_numbers.place()


@pytest.fixture(scope="module")
def run(place: Path) -> LegacyRun:
    return open_legacy(place / "run")


@pytest.fixture(scope="module")
def earlier(place: Path) -> list[Number]:
    return [number for folder in sorted((place / "results").iterdir()) for number in pico_v1_numbers.printed(folder)]


@pytest.fixture(scope="module")
def table(run: LegacyRun) -> Values:
    """As `measure` gives them."""
    metrics = [name for name in OURS.values() if name != "pwcca"]
    circuits = [f"{name}{form}" for name in ("ov_circuit", "ov_induced_change") for form in ("", "_joined")]
    asked = [*metrics, "numerical_rank"], ["*_proj", *circuits]
    return pico_v1_numbers.values(measure(run, *asked, splits=["val"], reference=LAST, dense_circuits=True))


def value_of(metric: str, matrix: torch.Tensor) -> float:
    """Our metric of a matrix of the test's."""
    return METRICS[metric].fn(matrix if metric in ELEMENTWISE else spectra([matrix])[0]).value


def test_every_number_is_spoken_of_below(earlier: list[Number]) -> None:
    sizes = {name: len(list(choose(earlier, name))) for name in GROUPS}
    assert sizes == {
        "same": 4536 + 468 + 2592,
        "rounding": 324,
        "v_o": 3276,
        "noise": 468 + 432,
        "pwcca": 108,
    }
    assert sum(sizes.values()) == len(earlier) == 12_204


def choose(numbers: Iterable[Number], group: str) -> Iterable[Number]:
    return (number for number in numbers if group_of(number) == group)


def test_modules_and_circuits_are_the_same(earlier: list[Number], table: Values) -> None:
    """Circuits by head and of all heads side by side: the number without a head."""
    assert max(relative(table[key_of(number)][0], number) for number in choose(earlier, "same")) < 1e-4


def test_condition_numbers_are_the_same_up_to_the_rounding_of_float32(earlier: list[Number], table: Values) -> None:
    """A singular value of a float32 decomposition is off by up to about eps s_1, a condition number by eps times it."""
    for number in choose(earlier, "rounding"):
        ours, status = table[key_of(number)]
        assert status == "ok", number
        assert relative(ours, number) < max(1e-4, EPS * number.value), number


def test_condition_numbers_of_products_are_noise(earlier: list[Number], table: Values) -> None:
    """A matrix of rank r below its size has no condition number: what was printed is s_1 over a rounding error."""
    ranks = {("activations", False): 8, ("gradients", False): 16, ("activations", True): 32}
    for number in choose(earlier, "noise"):
        assert number.value > 1e7
        assert table[key_of(number)] == (None, "rank_deficient")
        rank = table[key_of(number._replace(metric="numerical_rank"))][0]
        assert rank <= ranks[number.kind, number.joined] < 96


def value_times_output(run: LegacyRun, module: str, step: int) -> list[torch.Tensor]:
    """V[kv(h)] @ O[:, h], (8, 8), by head: from the inside of the head to itself, through the residual stream."""
    output = run.tensor(step, "weights", f"{module}.o_proj").double().split(8, dim=1)
    value = run.tensor(step, "weights", f"{module}.v_proj").double().split(8)
    return [value[head // 3] @ output[head] for head in range(HEADS)]


def test_weights_of_circuits_were_in_the_other_order(earlier: list[Number], table: Values, run: LegacyRun) -> None:
    differ = []
    for number in choose(earlier, "v_o"):
        matrices = value_times_output(run, number.module, number.step)
        matrix = torch.cat(matrices, dim=1) if number.joined else matrices[number.head]
        tolerance = max(1e-4, EPS * number.value) if number.metric == "condition_number" else 1e-4
        assert relative(value_of(number.metric, matrix), number) < tolerance, number
        if number.metric not in ("condition_number", *ELEMENTWISE) and not number.joined:
            differ.append(relative(table[key_of(number)][0], number))
    assert len(differ) == 3 * 432
    assert min(differ) > 0.5


def earlier_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Canonical correlations weighted by |P^T X|, P an orthonormal basis of X_c U + mean: U of the whitened
    cross-covariance without the whitening, and means added back, so that P holds no canonical directions."""
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    scales = [abs(centred.T @ centred).max() for centred in (centred_x, centred_y)]
    roots = []
    for centred, scale in zip((centred_x, centred_y), scales, strict=True):
        values, vectors = np.linalg.eigh(centred.T @ centred / scale)
        roots.append((vectors / np.sqrt(values)) @ vectors.T)
    cross = roots[0] @ (centred_x.T @ centred_y / np.sqrt(scales[0] * scales[1])) @ roots[1]
    u, correlations, _ = np.linalg.svd(cross)
    basis, _ = np.linalg.qr(centred_x @ u + x.mean(0))
    weights = abs(basis.T @ x).sum(1)
    return float(weights @ correlations / weights.sum())


def defined_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Morcos et al. 2018, eq. 3: correlations weighted by how much of centred X its canonical variates account for."""
    x, y = x - x.mean(0), y - y.mean(0)
    (q_x, _), (q_y, _) = np.linalg.qr(x), np.linalg.qr(y)
    u, correlations, _ = np.linalg.svd(q_x.T @ q_y)
    weights = abs((q_x @ u).T @ x).sum(1)
    return float(weights @ correlations / weights.sum())


def test_pwcca_was_weighted_by_other_directions(earlier: list[Number], run: LegacyRun) -> None:
    differ = []
    for number in choose(earlier, "pwcca"):
        x, y = (run.tensor(step, "activations", number.module, "val").double().numpy() for step in (number.step, LAST))
        assert relative(earlier_pwcca(x, y), number) < 1e-6
        differ.append((number.step, relative(defined_pwcca(x, y), number)))
    assert max(by for step, by in differ if step == LAST) < 1e-6
    assert 0.04 < max(by for _, by in differ) < 0.06
