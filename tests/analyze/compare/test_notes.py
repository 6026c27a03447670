"""What a comparison says before its numbers: which runs are one, how intervals were computed, which run stands out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pico_analyze.compare import compare
from pico_analyze.compare.arms import Arm
from pico_analyze.compare.notes import UNADJUSTED, notes
from pico_contract.errors import UserError

from ...support.made_arms import Manifest, arm, table


def said(*arms: Arm) -> str:
    return "\n".join(notes(arms, compare(arms)))


def noisy(name: str, runs: int, seed: int, odd: float = 0.0) -> Arm:
    """Runs of independent normal numbers; `odd` is added to those of the last run."""
    generator = np.random.default_rng(seed)
    made = arm(name, *[0.0] * runs)
    for place in range(runs):
        shift = odd if place == runs - 1 else 0.0
        made.tables[place] = table(lambda *_, shift=shift: float(10 + generator.normal() + shift))
    return made


def test_a_run_that_lies_in_both_arms_is_named() -> None:
    words = said(arm("a", 0.1, 0.2), arm("b", 0.2, 0.7, seeds=(8, 9)))
    assert 'a1 of "a" and b8 of "b" have numbers that are identical to the last bit: they look like one run.' in words


def test_seeds_that_all_runs_share_are_named() -> None:
    a, b = arm("a", 0.1, 0.2, 0.4), arm("b", 1.1, 1.3, 1.6)
    for run in [*a.runs, *b.runs]:
        run.manifest.seeds["init"] = 0  # type: ignore[attr-defined]
    assert 'All runs of "a" have the same seed.init: intervals are of the other seeds alone.' in said(a, b)
    assert "have the same seed" not in said(arm("a", 0.1, 0.2), arm("b", 1.1, 1.3))


def test_how_runs_were_paired_and_which_were_left_out_is_said() -> None:
    three = (0.1, 0.25, 0.4)
    assert '"b" less "a": 3 pairs of runs with equal seeds.' in said(arm("a", *three), arm("b", 1.1, 1.3, 1.6))
    words = said(arm("a", *three, 0.7), arm("b", 1.1, 1.3, 1.6, 1.9, seeds=(0, 1, 2, 9)))
    assert (
        "3 pairs of runs with equal seeds. Left out, since no run of the other arm has their seeds: a3 and b9." in words
    )
    words = said(arm("a", *three), arm("b", 1.1, 1.3, 1.6, seeds=(0, 1, 9)))
    assert '"b" less "a": 3 and 3 runs, not paired, since 2 have a partner of equal seeds.' in words
    words = said(arm("a", *three, seeds=(None, 1, 2)), arm("b", 1.1, 1.3, 1.6, seeds=(4, 5, 6)))
    assert "not paired, since seeds are not recorded of every run." in words


def test_what_so_few_runs_can_find_is_said() -> None:
    words = said(arm("a", 0.1, 0.2, 0.4), arm("b", 1.1, 1.3, 1.6))
    assert "3 pairs find a true difference of 3.3 standard deviations of the paired differences in 80%" in words
    words = said(arm("a", 0.1, 0.2), arm("b", 1.1, 1.3))
    assert "2 pairs find a true difference of 12 standard" in words
    assert "Two runs leave one degree of freedom" in words
    assert "needs 6 pairs, or 4 runs in each arm, to reach 0.05" in words
    words = said(arm("a", 0.1, 0.2, 0.4, 0.6), arm("b", 1.1, 1.3, 1.6, 1.7, seeds=(6, 7, 8, 9)))
    assert "4 runs in each arm find a true difference of 2.5 standard deviations of an arm in 80%" in words


def test_no_sentence_counts_what_chance_would_give() -> None:
    words = said(arm("a", 0.1, 0.2, 0.4), arm("b", 1.1, 1.3, 1.6))
    assert UNADJUSTED in words
    assert "by chance" not in words
    assert UNADJUSTED not in said(arm("a", 0.1), arm("b", 1.1))


@pytest.mark.parametrize("runs", [3, 5, 8])
def test_one_outlier_seed_is_named(runs: int) -> None:
    a, b = noisy("a", runs, seed=3, odd=1e5), noisy("b", runs, seed=4)
    words = said(a, b)
    assert f'a{runs - 1} lies far from the other {runs - 1} of "a" in PER of weights' in words
    assert 'of "b" in PER' not in words
    assert f"the pair a{runs - 1} and b{runs - 1} lies far" in words


@pytest.mark.slow
def test_runs_of_one_distribution_are_rarely_called_outliers() -> None:
    named = sum("lies far" in said(noisy("a", 5, 2 * i), noisy("b", 5, 2 * i + 1)) for i in range(40))
    assert named <= 2


def test_unequal_numbers_with_unequal_scatter_are_warned_of() -> None:
    few, many = arm("b", 1.0, 9.0, 5.0, seeds=(7, 8, 9)), arm("a", *np.linspace(0.1, 0.3, 8))
    assert "unequal numbers of runs (3 and 8) and unequal scatter" in said(many, few)
    assert "unequal scatter" not in said(arm("a", 0.1, 0.2, 0.3), arm("b", 1.0, 9.0, 5.0, seeds=(7, 8, 9)))


def test_missing_values_and_steps_that_were_left_out_are_counted() -> None:
    a, b = arm("a", 0.0, 0.1), arm("b", 1.0, 1.1)
    b.tables[1] = table(lambda step, layer, head: None if (step, layer) == (10, 1) else 2.0 + step)
    assert "4 differences have no value, since a run has none there." in said(a, b)
    words = said(arm("a", 0.0, steps=(0, 5, 10, 20)), arm("b", 0.0, steps=(0, 10, 30)))
    assert "Steps that not every run has were left out: 5, 20, 30." in words


def test_foreign_series_without_run_json_are_compared() -> None:
    a: Any = arm("a", 0.1, 0.25, 0.4, seeds=(None, None, None))
    b: Any = arm("b", 1.1, 1.3, 1.6, seeds=(None, None, None))
    assert set(compare([a, b])["interval"]) == {"welch"}
    assert "No configuration is recorded of a0, a1, a2, b0, b1, b2" in said(a, b)
    with pytest.raises(UserError, match="no number of the same step in common"):
        compare([a, arm("c", 1.0, steps=(3,), seeds=(None,))])


def test_a_manifest_without_seeds_is_of_unknown_seeds() -> None:
    a, b = arm("a", 0.1, 0.2), arm("b", 1.1, 1.3)
    for run in a.runs:
        run.manifest = Manifest({})  # type: ignore[misc]
    assert set(compare([a, b])["baseline_runs"]) == {2}
    assert not compare([a, b])["paired"].any()
