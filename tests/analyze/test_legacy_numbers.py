"""The 12,204 numbers that pico-analyze 1.0 printed for a run of pico-train 1.0, beside ours: docs/legacy_numbers.md."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from pico_analyze import measure
from pico_analyze.components import CIRCUITS, Key, Unit
from pico_analyze.linalg import Product, Sample, spectra
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.pair import cka
from pico_analyze.sources.legacy import LegacyRun, open_legacy
from pico_contract.names import canonical

LAYERS, HEADS, LAST = 12, 12, 30
EPS = float(torch.finfo(torch.float32).eps)
OURS = {
    "cka": "cka",
    "condition_number": "condition_number",
    "gini": "gini",
    "hoyer": "hoyer",
    "norm_frobenius": "frobenius_norm",
    "norm_inf": "max_abs",
    "norm_nuclear": "nuclear_norm",
    "per": "per",
    "pwcca_simple": "pwcca",
}
CIRCUIT = {"weights": "ov_circuit", "activations": "ov_circuit", "gradients": "ov_induced_change"}
ELEMENTWISE = {"gini", "hoyer", "max_abs"}


class Number(NamedTuple):
    """What the earlier tool printed: of a module, of one head's circuit, or (`joined`) of all heads side by side."""

    metric: str
    kind: str
    component: str
    module: str
    head: int | None
    step: int
    value: float

    @property
    def joined(self) -> bool:
        return self.component == "ov_circuit" and self.head is None

    @property
    def plain(self) -> bool:
        return self.component != "ov_circuit"


@pytest.fixture(scope="module")
def place() -> Path:
    folder = os.environ.get("PICO_TEST_DATA")
    found = Path(folder or "").parent / "reference" / "pico-1x"
    if folder is None or not found.is_dir():
        pytest.skip("no reference/pico-1x beside the directory that PICO_TEST_DATA names")
    return found


@pytest.fixture(scope="module")
def run(place: Path) -> LegacyRun:
    return open_legacy(place / "run")


@pytest.fixture(scope="module")
def earlier(place: Path) -> list[Number]:
    found = []
    for path in sorted((place / "results").glob("*/step_*.json")):
        for key, value in json.loads(path.read_text()).items():
            name, kind, head = re.fullmatch(r"(.+)\.(weights|gradients|activations)(?:\.heads\.(\d+))?", key).groups()
            component = "ov_circuit" if name.endswith(".ov_circuit") else "plain"
            module = canonical(name.replace(".ov_circuit", ".self_attn"))
            step = int(path.stem.removeprefix("step_"))
            head = None if head is None else int(head)
            found.append(Number(OURS[path.parent.name], kind, component, module, head, step, value))
    return found


@pytest.fixture(scope="module")
def table(run: LegacyRun) -> dict[tuple[Any, ...], tuple[float | None, str]]:
    """(metric, kind, plain, module, head, step) -> value and status, as `measure` gives them."""
    metrics = [name for name in OURS.values() if name != "pwcca"]
    components = ["*_proj", "ov_circuit", "ov_induced_change"]
    frame = measure(run, [*metrics, "numerical_rank"], components, splits=["val"], reference=LAST)
    found = {}
    for row in frame.to_dict("records"):
        head = None if pd.isna(row["head"]) else int(row["head"])
        key = (row["metric"], row["kind"], row["component"] not in CIRCUITS, row["module"], head, row["step"])
        found[key] = (None if pd.isna(row["value"]) else row["value"], row["status"])
    return found


def key_of(number: Number) -> tuple[Any, ...]:
    return number.metric, number.kind, number.plain, number.module, number.head, number.step


def relative(ours: float, number: Number) -> float:
    return abs(ours / number.value - 1)


def circuits(run: LegacyRun, kind: str, module: str, step: int) -> list[torch.Tensor]:
    """Our circuit of every head, dense, float64."""
    keys = tuple(Key(CIRCUIT[kind], None, head, module) for head in range(HEADS))
    split = None if kind == "weights" else "val"
    products = CIRCUITS[CIRCUIT[kind]].load(run, Unit(CIRCUIT[kind], module, keys), step, kind, split)
    return [product.dense() for product in products if isinstance(product, Product)]


def value_of(metric: str, matrix: torch.Tensor, reference: torch.Tensor | None = None) -> float:
    """Our metric of a matrix of the test's."""
    if reference is not None:
        return cka(Sample.of(matrix), Sample.of(reference)).value
    given = matrix.double() if metric in ELEMENTWISE else spectra([matrix.double()])[0]
    return METRICS[metric].fn(given).value


def test_every_number_is_spoken_of_below(earlier: list[Number]) -> None:
    sizes = {name: len(list(choose(earlier, name))) for name in GROUPS}
    assert sizes == {
        "same": 4536,
        "joined": 468,
        "dense": 2592,
        "rounding": 324,
        "v_o": 3276,
        "noise": 468 + 432,
        "pwcca": 108,
    }
    assert sum(sizes.values()) == len(earlier) == 12_204


def choose(numbers: Iterable[Number], group: str) -> Iterable[Number]:
    return (number for number in numbers if group_of(number) == group)


GROUPS = ("same", "joined", "dense", "rounding", "v_o", "noise", "pwcca")


def group_of(number: Number) -> str:
    if number.metric == "pwcca":
        return "pwcca"
    if number.plain:
        return "rounding" if number.metric == "condition_number" else "same"
    if number.kind == "weights":
        return "v_o"
    if number.metric == "condition_number" and not (number.joined and number.kind == "gradients"):
        return "noise"
    if number.joined:
        return "joined"
    return "dense" if number.metric in ELEMENTWISE else "same"


def test_modules_and_circuits_by_head_are_the_same(earlier: list[Number], table: dict[Any, Any]) -> None:
    assert max(relative(table[key_of(number)][0], number) for number in choose(earlier, "same")) < 1e-4


def test_entries_of_circuits_are_the_same(earlier: list[Number], run: LegacyRun) -> None:
    """`measure` keeps circuits as factors, so that a user who wants these forms the product."""
    place_of = attrgetter("kind", "module", "step")
    numbers = sorted(choose(earlier, "dense"), key=place_of)
    for place, group in itertools.groupby(numbers, place_of):
        matrices = circuits(run, *place)
        for number in group:
            assert relative(value_of(number.metric, matrices[number.head]), number) < 1e-4, number


def test_heads_side_by_side_are_the_same(earlier: list[Number], run: LegacyRun) -> None:
    """The number without a head is that of the heads' matrices one beside the other, (rows, 12 x 96)."""
    for number in choose(earlier, "joined"):
        matrix = torch.cat(circuits(run, number.kind, number.module, number.step), dim=1)
        last = torch.cat(circuits(run, number.kind, number.module, LAST), dim=1) if number.metric == "cka" else None
        assert relative(value_of(number.metric, matrix, last), number) < 1e-4, number


def test_condition_numbers_are_the_same_up_to_the_rounding_of_float32(
    earlier: list[Number], table: dict[Any, Any]
) -> None:
    """A singular value of a float32 decomposition is off by up to about eps s_1, a condition number by eps times it."""
    refused = []
    for number in choose(earlier, "rounding"):
        ours, status = table[key_of(number)]
        if status == "ok":
            assert relative(ours, number) < max(1e-4, EPS * number.value), number
        else:
            refused.append(number)
    assert {(number.kind, number.module.split(".")[-1]) for number in refused} == {("gradients", "o_proj")}
    assert (len(refused), {table[key_of(n)] for n in refused}) == (12, {(None, "rank_deficient")})
    assert min(number.value for number in refused) > 1 / (96 * EPS)


def test_condition_numbers_of_products_are_noise(earlier: list[Number], table: dict[Any, Any], run: LegacyRun) -> None:
    """A matrix of rank r below its size has no condition number: what was printed is s_1 over a rounding error."""
    ranks = {("activations", False): 8, ("gradients", False): 16, ("activations", True): 32}
    for number in choose(earlier, "noise"):
        assert number.value > 1e7
        rank = ranks[number.kind, number.joined]
        if number.joined:
            joined = torch.cat(circuits(run, number.kind, number.module, number.step), dim=1)
            assert int(torch.linalg.matrix_rank(joined)) <= rank < min(joined.shape)
        else:
            assert table[key_of(number)] == (None, "rank_deficient")
            assert table[key_of(number._replace(metric="numerical_rank"))][0] <= rank < 96


def value_times_output(run: LegacyRun, module: str, step: int) -> list[torch.Tensor]:
    """V[kv(h)] @ O[:, h], (8, 8), by head: from the inside of the head to itself, through the residual stream."""
    output = run.tensor(step, "weights", f"{module}.o_proj").double().split(8, dim=1)
    value = run.tensor(step, "weights", f"{module}.v_proj").double().split(8)
    return [value[head // 3] @ output[head] for head in range(HEADS)]


def test_weights_of_circuits_were_in_the_other_order(
    earlier: list[Number], table: dict[Any, Any], run: LegacyRun
) -> None:
    differ = []
    for number in choose(earlier, "v_o"):
        matrices = value_times_output(run, number.module, number.step)
        matrix = torch.cat(matrices, dim=1) if number.joined else matrices[number.head]
        tolerance = max(1e-4, EPS * number.value) if number.metric == "condition_number" else 1e-4
        assert relative(value_of(number.metric, matrix), number) < tolerance, number
        if key_of(number) in table and number.metric != "condition_number":
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
