"""The permutation null: definition, calibration, seeds, and that nothing of a side is made twice."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from pico_analyze.linalg.sample import Sample
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.null import Null, permutation_null, seed_of
from pico_analyze.metrics.pair import cka, pwcca, svcca

PAIRS = [name for name, metric in METRICS.items() if metric.arity == 2 and metric.needs == "sample"]


def drawn(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_similarity_of_samples_whose_rows_are_permuted(name: str) -> None:
    fn = partial(METRICS[name].fn, **METRICS[name].parameters)
    x, y = drawn(0, 40, 6), drawn(1, 40, 8) + drawn(0, 40, 6) @ drawn(2, 6, 8)
    found = permutation_null(fn, Sample.of(x), Sample.of(y), 9, seed=5)
    draw = torch.Generator().manual_seed(5)
    values = [fn(Sample.of(x), Sample.of(y[torch.randperm(40, generator=draw)])).value for _ in range(9)]
    observed = fn(Sample.of(x), Sample.of(y)).value
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.p == (1 + sum(value >= observed for value in values)) / 10


def test_mean_over_many_draws_is_that_over_all_orders() -> None:
    x, y = drawn(0, 5, 2), drawn(1, 5, 3)
    exact = [cka(Sample.of(x), Sample.of(y[list(order)])).value for order in itertools.permutations(range(5))]
    found = permutation_null(cka, Sample.of(x), Sample.of(y), 3000, seed=0)
    observed = cka(Sample.of(x), Sample.of(y)).value
    assert found.mean == pytest.approx(np.mean(exact), abs=0.02)
    assert found.sd == pytest.approx(np.std(exact), abs=0.02)
    assert found.p == pytest.approx(np.mean(np.array(exact) >= observed - 1e-12), abs=0.04)


def test_p_is_small_for_a_sample_and_itself_and_anything_for_independent_ones() -> None:
    x = Sample.of(drawn(0, 32, 8))
    assert permutation_null(cka, x, x, 99, seed=0).p == 1 / 100
    p = [permutation_null(cka, Sample.of(drawn(s, 16, 4)), Sample.of(drawn(s + 99, 16, 4)), 19, s).p for s in range(60)]
    assert 0.4 < np.mean(p) < 0.65
    assert min(p) < 0.2
    assert max(p) > 0.8


def test_seeds_follow_from_names_alone() -> None:
    x, y = Sample.of(drawn(0, 20, 4)), Sample.of(drawn(1, 20, 4))
    assert permutation_null(cka, x, y, 9, 1) == permutation_null(cka, x, y, 9, 1) != permutation_null(cka, x, y, 9, 2)
    seeds = [seed_of("run", "v_proj", None, 10), seed_of("run", "v_proj", 0, 10), seed_of("run", "v_proj", None, 20)]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("a", 1) == int.from_bytes(bytes.fromhex("2657442bb4a48d62"), "big") >> 1


def test_no_value_has_no_null() -> None:
    x, flat, wide = Sample.of(drawn(0, 20, 4)), Sample.of(torch.ones(20, 4)), Sample.of(drawn(1, 20, 30))
    assert permutation_null(cka, x, flat, 9, 0) == permutation_null(pwcca, x, wide, 9, 0) == Null(None, None, None)


def test_one_draw_is_refused() -> None:
    x = Sample.of(drawn(0, 20, 4))
    with pytest.raises(ValueError, match="at least 2 draws but is given 1"):
        permutation_null(cka, x, x, 1, 0)


def test_bases_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = Sample.of(drawn(0, 40, 6)), Sample.of(drawn(1, 40, 6))
    permutation_null(svcca, x, y, 2, 0)
    monkeypatch.delattr(torch.linalg, "svd")
    assert permutation_null(svcca, x, y, 9, 0).p is not None
