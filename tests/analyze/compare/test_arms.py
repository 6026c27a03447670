"""Which runs of an arm count as one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from pico_analyze.compare import compare
from pico_analyze.compare.arms import Arm
from pico_analyze.compare.notes import notes

from ...support.made_arms import arm, row


def said(*arms: Arm) -> str:
    return "\n".join(notes(arms, compare(arms)))


def with_parents(made: Arm, *parents: str) -> Arm:
    for run, parent in zip(made.runs, parents, strict=True):
        run.manifest.parent = parent  # type: ignore[attr-defined]
    return made


def test_one_seed_twice_in_an_arm_is_one_run() -> None:
    a, b = arm("a", 0.1, 0.1, seeds=(0, 0)), arm("b", 1.25, 1.5, seeds=(1, 2))
    found = compare([a, b])
    assert set(found["status"]) == {"one_run"}
    assert found["low"].isna().all()
    words = said(a, b)
    assert 'a0 and a0 of "a" have the same seeds (init 0, data 0, method 0), and their numbers are identical' in words
    assert "they count as one run" in words


def test_one_seed_twice_with_other_numbers_counts_with_its_mean() -> None:
    a, b = arm("a", 0.1, 0.3, 0.6, seeds=(0, 0, 1)), arm("b", 1.1, 1.2, seeds=(0, 1))
    one = row(compare([a, b]), 10)
    assert (one["baseline_runs"], one["df"]) == (2, 1)
    assert one["difference"] == pytest.approx(((1.1 - 0.2) + (1.2 - 0.6)) / 2)
    assert "identical" not in said(a, b)


@pytest.mark.parametrize("seeds", [(None, None, None), (0, 1, 2)])
def test_copies_count_as_one_whatever_their_seeds_say(seeds: Sequence[int | None]) -> None:
    a, b = arm("a", 0.1, 0.1, 0.3, seeds=seeds), arm("b", 1.1, 1.3, 1.6)
    assert set(compare([a, b])["baseline_runs"]) == {2}
    assert "numbers that are identical to the last bit: they count as one run" in said(a, b)


def test_counts_that_agree_by_nature_do_not_make_runs_one() -> None:
    a, b = arm("a", 1.0, 1.0, 1.0), arm("b", 2.0, 2.0, 2.0)
    found = compare([a, b])
    assert set(found["baseline_runs"]) == {3}
    assert '"b": 12 intervals have no width' in said(a, b)


@pytest.mark.parametrize(
    "parents",
    [
        ("pre@100", "pre@100", "pre@100"),
        ("pre@100", "./pre@200", "pre/checkpoints/step_00000100"),
        ("model", "model/", "other/../model"),
    ],
)
def test_fine_tuning_seeds_of_one_pretrained_model_count_as_one(parents: tuple[str, ...]) -> None:
    a, b = with_parents(arm("a", 0.1, 0.2, 0.4), *parents), arm("b", 1.1, 1.3, 1.6)
    found = compare([a, b])
    assert set(found["status"]) == {"one_run"}
    words = said(a, b)
    assert "began from one pretrained model" in words
    assert "seeds of fine-tuning are not independent runs: they count as one run" in words


def test_fine_tuning_of_several_pretrained_models_is_paired_by_seeds_and_model() -> None:
    a = with_parents(arm("a", 0.1, 0.2, 0.4), "p0@9", "p1@9", "p2@9")
    b = with_parents(arm("b", 1.1, 1.3, 1.6), "p0@9", "p1@9", "p2@9")
    assert set(compare([a, b])["interval"]) == {"student_pairs"}
    swapped = with_parents(arm("b", 1.1, 1.3, 1.6), "p1@9", "p2@9", "p0@9")
    assert set(compare([a, swapped])["interval"]) == {"welch"}, "equal seeds on other models are no pair"
