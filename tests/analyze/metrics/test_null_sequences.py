"""Several positions of a probe row: whole rows are permuted, pairs within a row left out, and p is calibrated."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pico_analyze import measure, open_run
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.linalg.sample import Sample
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.null import Null, permutation_null
from pico_analyze.metrics.pair import cka, cka_debiased
from pico_analyze.metrics.single import Outcome
from pico_analyze.metrics.unbiased import unbiased_hsic
from pico_analyze.sources.run import Run
from pico_contract import codec
from pico_contract.layout import MANIFEST, RunLayout
from pico_contract.schema import RowMap, SnapshotManifest

PAIRS = [name for name, metric in METRICS.items() if metric.arity == 2 and metric.needs == "sample"]


def drawn(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dependent(seed: int, sequences: int, positions: int, width: int) -> Sample:
    """Rows of a sequence that differ by a tenth of what sequences differ by."""
    of_sequence = drawn(seed, sequences, width).repeat_interleave(positions, 0)
    return Sample.of(of_sequence + 0.1 * drawn(seed + 10_000, sequences * positions, width), positions)


@pytest.mark.parametrize("name", PAIRS)
def test_sequences_are_permuted_whole(name: str) -> None:
    fn = partial(METRICS[name].fn, **METRICS[name].parameters)
    x, y = drawn(0, 60, 6), drawn(1, 60, 8) + drawn(0, 60, 6) @ drawn(2, 6, 8)
    found = permutation_null(fn, Sample.of(x, 4), Sample.of(y, 4), 9, seed=5)
    draw = torch.Generator().manual_seed(5)
    blocks = y.unflatten(0, (15, 4))
    orders = [torch.randperm(15, generator=draw) for _ in range(9)]
    values = [fn(Sample.of(x, 4), Sample.of(blocks[order].flatten(0, 1), 4)).value for order in orders]
    observed = fn(Sample.of(x, 4), Sample.of(y, 4)).value
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.p == (1 + sum(value >= observed for value in values)) / 10


@pytest.mark.parametrize("name", ["cka", "cka_debiased", "procrustes", "mutual_knn"])
def test_p_of_independent_samples_is_calibrated(name: str) -> None:
    """5 of 100 independent pairs have p <= 0.05, 13 at most in 99.9% of cases; permuted by rows, most of them have.

    The mean of p is 0.525, more where draws tie with what is observed, as counts of neighbours do.
    """
    fn = partial(METRICS[name].fn, **METRICS[name].parameters)
    samples = [(dependent(2 * case, 16, 8, 4), dependent(2 * case + 1, 16, 8, 4)) for case in range(100)]
    p = [permutation_null(fn, x, y, 19, seed).p for seed, (x, y) in enumerate(samples)]
    assert sum(one <= 0.05 for one in p) <= 13
    assert 0.42 < np.mean(p) < 0.7
    naive = [(Sample.of(x.matrix), Sample.of(y.matrix)) for x, y in samples[:20]]
    by_rows = [permutation_null(fn, x, y, 19, seed).p for seed, (x, y) in enumerate(naive)]
    assert sum(one <= 0.05 for one in by_rows) >= 15


def test_dependent_samples_are_found() -> None:
    x = dependent(0, 16, 8, 4)
    y = Sample.of(x.matrix @ drawn(5, 4, 4) + 0.1 * drawn(6, 128, 4), 8)
    for name in ("cka", "cka_debiased", "procrustes"):
        assert permutation_null(METRICS[name].fn, x, y, 99, 0).p == 1 / 100


def hsic_by_definition(x: np.ndarray, y: np.ndarray, positions: int) -> float:
    """Means over all i, j, q, r of different sequences."""
    k, gram = x @ x.T, y @ y.T
    sequence = np.arange(len(x)) // positions
    two, three, four = [], [], []
    for i, j in itertools.product(range(len(x)), repeat=2):
        if sequence[i] == sequence[j]:
            continue
        two.append(k[i, j] * gram[i, j])
        third = [r for r in range(len(x)) if sequence[r] not in (sequence[i], sequence[j])]
        three += [k[i, j] * gram[i, r] for r in third]
        four += [k[i, j] * gram[q, r] for q in third for r in third if sequence[q] != sequence[r]]
    return float(np.mean(two) + np.mean(four) - 2 * np.mean(three))


@pytest.mark.parametrize(("sequences", "positions"), [(4, 3), (5, 2), (6, 1)])
@pytest.mark.parametrize("width", [2, 30])
def test_debiased_cka_leaves_pairs_within_a_sequence_out(sequences: int, positions: int, width: int) -> None:
    n = sequences * positions
    x, y = drawn(0, n, width) + 3, drawn(1, n, 3) + drawn(0, n, width)[:, :2] @ drawn(2, 2, 3)
    a, b = Sample.of(x, positions), Sample.of(y, positions)
    xx, yy, xy = (hsic_by_definition(u.numpy(), v.numpy(), positions) for u, v in ((x, x), (y, y), (x, y)))
    assert unbiased_hsic(a, b) == pytest.approx(n * (n - positions) * xy, rel=1e-9, abs=1e-9)
    if min(xx, yy) > 0:
        assert cka_debiased(a, b).value == pytest.approx(np.clip(xy / (xx * yy) ** 0.5, -1, 1), rel=1e-8)
        assert cka_debiased(a, a).value == pytest.approx(1)


def test_it_is_near_zero_on_independent_sequences_whose_rows_are_alike() -> None:
    blocked = [cka_debiased(dependent(2 * s, 32, 8, 4), dependent(2 * s + 1, 32, 8, 4)).value for s in range(60)]
    rows = [dependent(2 * s, 32, 8, 4) for s in range(40)]
    naive = [cka_debiased(Sample.of(x.matrix), Sample.of(y.matrix)).value for x, y in itertools.pairwise(rows)]
    assert abs(np.mean(blocked)) < 4 * np.std(blocked) / 60**0.5
    assert np.mean(naive) > 0.05


def test_too_few_sequences_have_no_estimate_and_one_has_no_null() -> None:
    assert cka_debiased(dependent(0, 3, 8, 4), dependent(1, 3, 8, 4)) == Outcome(None, "n_less_than_d")
    assert cka_debiased(dependent(0, 4, 8, 4), dependent(1, 4, 8, 4)).status in ("ok", "zero")
    assert permutation_null(cka, dependent(0, 1, 30, 4), dependent(1, 1, 30, 4), 9, 0) == Null(None, None, None)


@pytest.fixture
def several(layout: RunLayout) -> Callable[[RowMap], Run]:
    """The small run with another row map."""

    def opened(rows: RowMap) -> Run:
        for directory in layout.snapshots.iterdir():
            manifest = codec.read_manifest(directory / MANIFEST, SnapshotManifest)
            manifest.row_map = rows
            codec.write_text(directory / MANIFEST, manifest.to_json())
        return open_run(layout.root)

    return opened


@pytest.mark.parametrize(
    ("rows", "positions"),
    [
        (RowMap(rule="every", positions=[1, 5], probe_rows=6), 2),
        (RowMap(rule="last", positions=[7], probe_rows=12), 1),
        (RowMap(rule="mean", positions=[], probe_rows=12), 1),
    ],
)
def test_the_row_map_of_a_run_says_which_rows_belong_together(
    several: Callable[[RowMap], Run], rows: RowMap, positions: int
) -> None:
    run = several(rows)
    assert run.positions(1) == positions
    asked: dict[str, Any] = {"kinds": ["activations"], "null_draws": 19}
    frame = measure(run, ["cka", "cka_debiased"], ["q_proj"], **asked)
    row = frame[(frame["step"] == 1) & (frame["layer"] == 0)].set_index("metric").loc["cka_debiased"]
    x, y = (Sample.of(run.tensor(step, "activations", row["module"]), positions) for step in (1, 2))
    assert row["value"] == pytest.approx(cka_debiased(x, y).value, rel=1e-9)
    null = {row_["p"] for _, row_ in frame[frame["step"] == 2].iterrows()}
    assert min(null) == 1 / 20, "a sample and itself"


def test_a_row_map_that_the_rows_cannot_have_is_damage(several: Callable[[RowMap], Run]) -> None:
    run = several(RowMap(rule="every", positions=[0, 1, 2, 3, 4], probe_rows=3))
    with pytest.warns(DamagedWarning, match="the row map has 5 positions a row, which 12 rows cannot have"):
        frame = measure(run, ["cka", "per"], ["q_proj"], kinds=["weights", "activations"])
    assert frame.groupby("kind")["status"].unique().apply(list).to_dict() == {
        "activations": ["damaged"],
        "weights": ["ok"],
    }
