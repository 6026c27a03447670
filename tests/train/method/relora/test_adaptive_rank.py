"""Spectra of factors equal those of the dense product; ranks are shared out within the budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_train.method.relora.adaptive_rank import effective_rank, energy_rank, share_out, singular_values


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_factor_path_equals_the_dense_path(outputs: int, inputs: int, rank: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    B, A = draw.normal(size=(outputs, rank)), draw.normal(size=(rank, inputs))
    ours = singular_values(torch.from_numpy(B), torch.from_numpy(A)).numpy()
    dense = np.linalg.svd(B @ A, compute_uv=False)
    both = min(len(ours), len(dense))
    np.testing.assert_allclose(ours[:both], dense[:both], rtol=0, atol=1e-12 * dense[0])
    assert np.all(ours[both:] <= 1e-12 * dense[0])


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_it_equals_the_analysis(factors: torch.dtype) -> None:
    """Training may not import analysis: the two are held together here."""
    from pico_analyze.linalg import FactoredMatrix, spectra

    draws = torch.Generator().manual_seed(3)
    B = torch.randn(40, 6, generator=draws).to(factors)
    A = torch.randn(6, 30, generator=draws).to(factors)
    (theirs,) = spectra([FactoredMatrix(B, A)])
    torch.testing.assert_close(singular_values(B, A), theirs.values[:6], rtol=1e-7, atol=0)


def test_demands_in_closed_form() -> None:
    equal, one = torch.ones(5, dtype=torch.float64), torch.tensor([3.0, 0, 0], dtype=torch.float64)
    assert effective_rank(equal) == pytest.approx(5)
    assert effective_rank(one) == pytest.approx(1)
    assert effective_rank(0 * one) == energy_rank(0 * one, 0.9) == 0
    assert [energy_rank(equal, share) for share in (0.2, 0.21, 0.8, 1.0)] == [1, 2, 4, 5]
    values = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)  # squares 4, 1, 1
    assert [energy_rank(values, share) for share in (0.5, 0.7, 0.9)] == [1, 2, 3]
    assert effective_rank(values) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))


MODULES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4),
    st.tuples(st.just(0.0) | st.floats(1, 16), st.integers(1, 100), st.integers(1, 64)),
    min_size=1,
)


@given(MODULES, st.integers(1, 4), st.integers(1, 5000))
@settings(deadline=None)
def test_shares_keep_to_the_budget_and_its_bounds(
    modules: dict[str, tuple[float, int, int]], least: int, budget: int
) -> None:
    demands, costs, most = ({name: m[i] for name, m in modules.items()} for i in range(3))
    ranks = share_out(demands, costs, most, least, budget)
    floor = sum(min(least, most[name]) * costs[name] for name in modules)
    assert all(min(least, most[name]) <= ranks[name] <= most[name] for name in modules)
    assert sum(ranks[name] * costs[name] for name in modules) <= max(budget, floor)


def test_shares_follow_demands_and_use_the_budget_up() -> None:
    names = dict.fromkeys("abcd", 10)
    ranks = share_out({"a": 1.0, "b": 2.0, "c": 2.0, "d": 3.0}, names, dict.fromkeys("abcd", 99), 1, 330)
    assert sum(ranks.values()) == 33
    assert ranks["a"] <= ranks["b"] <= ranks["d"]
    assert ranks["d"] == pytest.approx(3 * ranks["a"], abs=2)
    assert share_out(dict.fromkeys("abcd", 0.0), names, dict.fromkeys("abcd", 99), 1, 320) == dict.fromkeys("abcd", 8)
    assert share_out(dict.fromkeys("ab", 1.0), names, {"a": 2, "b": 3}, 1, 10**6) == {"a": 2, "b": 3}
