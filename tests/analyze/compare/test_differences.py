"""Differences between arms, against closed forms and scipy, and what is not claimed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from pico_analyze.compare import COLUMNS, compare, curves
from pico_analyze.compare.arms import Arm
from pico_analyze.compare.notes import notes
from pico_contract.errors import UserError
from scipy import stats

from ...support.made_arms import arm, row, table

FIRST_COLUMNS = [
    *("baseline", "arm", "step", "kind", "split", "component", "layer", "metric", "variant", "reference_step"),
    *("reference_module", "unit", "baseline_mean", "arm_mean", "difference", "relative", "low", "high"),
    *("effect_size", "baseline_runs", "arm_runs", "paired", "status"),
]


def test_columns_keep_their_names_and_their_places() -> None:
    assert COLUMNS[: len(FIRST_COLUMNS)] == FIRST_COLUMNS
    assert COLUMNS[len(FIRST_COLUMNS) :] == ["interval", "df", "baseline_sd", "arm_sd", "p_max_t"]


def test_differences_are_those_of_the_means_over_runs_and_heads_at_each_step() -> None:
    found = compare([arm("a", 0.0, 0.3, 0.6), arm("b", 1.0, 1.3, 1.9)])
    assert list(found.columns) == COLUMNS
    assert len(found) == 2 * 2 * (2 + 1)
    one = row(found, 10, layer=1)
    assert one[["baseline", "arm", "baseline_runs", "arm_runs", "status"]].tolist() == ["a", "b", 3, 3, "ok"]
    assert one["baseline_mean"] == pytest.approx(12.3)
    assert one["difference"] == pytest.approx(1.1)
    assert one["relative"] == pytest.approx(1.1 / 12.3)
    assert row(found, 10, "ov_circuit")["baseline_mean"] == pytest.approx(11.3 + 0.5)


def test_the_mean_over_steps_has_no_step() -> None:
    found = compare([arm("a", 0.0), Arm("b", arm("b", 0.0).runs, [table(lambda step, *_: 1 + 3 * step)])])
    assert row(found, None)["difference"] == pytest.approx((0 + 20) / 2)
    assert row(found, None)["baseline_mean"] == pytest.approx(6.0)


def test_similarities_to_the_step_before_have_one_mean_over_steps() -> None:
    def of(offset: float) -> pd.DataFrame:
        parts = [
            table(lambda s, *_: 0.5 + offset, (step,), reference_step=before) for step, before in ((10, 0), (20, 10))
        ]
        return pd.concat(parts)

    found = compare([Arm("a", arm("a", 0).runs, [of(0)]), Arm("b", arm("b", 0).runs, [of(0.25)])])
    assert found["step"].isna().sum() == 4
    assert row(found, None)["difference"] == pytest.approx(0.25)


def test_with_one_run_no_interval_is_claimed() -> None:
    for arms in ([arm("a", 0.0), arm("b", 1.0)], [arm("a", 0.0, 0.1, 0.2), arm("b", 1.0)]):
        found = compare(arms)
        assert set(found["status"]) == {"one_run"}
        assert found[["low", "high", "effect_size", "interval", "df", "p_max_t"]].isna().all(axis=None)
        assert found["difference"].notna().all()


def test_runs_of_the_same_seeds_are_paired_in_any_order_by_students_t() -> None:
    old, new = [0.0, 5.0, 9.0], [1.0, 6.5, 10.0]  # by seed
    found = compare([arm("a", *old), arm("b", new[2], new[0], new[1], seeds=(2, 0, 1))])
    assert found["paired"].all()
    theirs = stats.ttest_rel(new, old).confidence_interval()
    one = row(found, 10)
    assert (one["low"], one["high"]) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert (one["interval"], one["df"]) == ("student_pairs", 2)
    assert one["baseline_sd"] == pytest.approx(np.std(old, ddof=1))
    assert one["arm_sd"] == pytest.approx(np.std(new, ddof=1))


@pytest.mark.parametrize(
    ("seeds", "pairs"),
    [
        ((0, 1, 2, 3), 4),
        ((0, 1), 2),  # every run of the smaller arm has a partner
        ((0, 1, 2, 7), 3),  # three pairs, and two thirds of the smaller arm
        ((0, 1, 7), 0),  # two pairs only
        ((4, 5, 6, 7), 0),
        ((None, None, None), 0),
        ((0, 1, 2, None), 3),
    ],
)
def test_pairing_depends_on_seeds_alone(seeds: Sequence[int | None], pairs: int) -> None:
    old, new = [0.1, 0.25, 0.4, 0.55], [1.1, 1.3, 1.45, 1.8][: len(seeds)]
    found = compare([arm("a", *old), arm("b", *new, seeds=seeds)])
    assert set(found["paired"]) == {pairs > 0}
    one = row(found, 10)
    if pairs:
        theirs = stats.ttest_rel(new[:pairs], old[:pairs]).confidence_interval()
    else:
        theirs = stats.ttest_ind(new, old, equal_var=False).confidence_interval()
    assert (one["low"], one["high"]) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert (one["baseline_runs"], one["arm_runs"]) == ((pairs, pairs) if pairs else (4, len(seeds)))
    assert one["difference"] == pytest.approx((one["low"] + one["high"]) / 2), "means are of the runs that were used"


def test_the_seed_of_the_method_counts_where_both_methods_draw_from_it() -> None:
    def arms(first: str, second: str) -> list[Arm]:
        found = [arm("a", 0.1, 0.2, 0.4), arm("b", 1.0, 1.3, 1.5)]
        for one, method in zip(found, (first, second), strict=True):
            for run in one.runs:
                run.manifest.method = method  # type: ignore[attr-defined]
        for run in found[1].runs:
            run.manifest.seeds["method"] += 5  # type: ignore[attr-defined]
        return found

    assert compare(arms("plain", "relora"))["paired"].all()
    assert not compare(arms("relora", "relora"))["paired"].any()


def test_two_runs_an_arm_have_an_interval_of_one_degree_of_freedom() -> None:
    found = compare([arm("a", 0.0, 0.1), arm("b", 1.0, 1.3)])
    assert set(found["df"]) == {1}
    one = row(found, 10)
    assert one["high"] - one["difference"] == pytest.approx(np.tan(np.pi * 0.475) * 0.1), "t of 1 df is Cauchy"


def test_a_bootstrap_is_there_by_its_name_from_ten_runs_on() -> None:
    many = [arm("a", *np.linspace(0, 1, 10)), arm("b", *np.linspace(1, 2.5, 10))]
    assert set(compare(many)["interval"]) == {"student_pairs"}
    found = compare(many, interval="bootstrap")
    assert set(found["interval"]) == {"bootstrap"}
    assert found["df"].isna().all()
    assert (found["low"] > 1).all()
    assert (found["high"] < 1.5).all()
    with pytest.raises(UserError, match="at least 10 runs in each arm; these have 9 and 9"):
        compare([arm("a", *np.arange(9)), arm("b", *np.arange(9))], interval="bootstrap")
    with pytest.raises(UserError, match='no interval "bootstrp"; did you mean "bootstrap"'):
        compare(many, interval="bootstrp")


@pytest.mark.parametrize(("pairs", "reachable"), [(5, False), (6, True)])
def test_maps_are_tested_by_max_t_where_it_can_reach_its_level(pairs: int, reachable: bool) -> None:
    old = np.linspace(0.1, 0.7, pairs)
    found = compare([arm("a", *old), arm("b", *(old + np.linspace(1, 1.2, pairs)))])
    at_steps, over_steps = found[found["step"].notna()], found[found["step"].isna()]
    assert over_steps["p_max_t"].isna().all()
    expected = [2 / 2**pairs] if reachable else []
    assert at_steps["p_max_t"].dropna().unique().tolist() == expected, "all differences have one sign"


def test_what_one_run_lacks_has_no_difference() -> None:
    a, b = arm("a", 0.0, 0.1), arm("b", 1.0, 1.1)
    b.tables[1] = table(lambda step, layer, head: None if (step, layer) == (10, 1) else 2.0 + step)
    found = compare([a, b])
    absent = found[found["status"] == "missing"]
    assert {(row.layer, row.component) for row in absent.itertuples()} == {(1, "q_proj"), (1, "ov_circuit")}
    assert absent["step"].fillna(-1).unique().tolist() == [-1, 10]
    assert absent[["difference", "low", "high", "effect_size"]].isna().all(axis=None)


def test_steps_that_not_every_run_has_are_left_out() -> None:
    a, b = arm("a", 0.0, steps=(0, 5, 10, 20)), arm("b", 0.0, steps=(0, 10, 30))
    found = compare([a, b])
    assert sorted(found["step"].dropna().unique()) == [0, 10]


@pytest.mark.parametrize("runs", [2, 7])
def test_an_infinite_value_is_a_missing_one(runs: int) -> None:
    a, b = arm("a", *np.linspace(0.1, 0.3, runs)), arm("b", *np.linspace(1.1, 1.6, runs))
    b.tables[1] = table(lambda step, layer, head: np.inf if (step, layer) == (10, 1) else 2.1 + step)
    found = compare([a, b])
    assert set(found.loc[found["difference"].isna(), "layer"]) == {1}
    assert set(found.loc[found["difference"].isna(), "status"]) == {"missing"}
    assert (found["status"] == "ok").sum() == 8
    assert "4 differences have no value, since a run has none there." in notes([a, b], found)


def test_several_arms_are_each_compared_with_the_first() -> None:
    found = compare([arm("a", 0.0), arm("b", 1.0), arm("c", 2.0)])
    assert found.groupby("arm")["difference"].mean().to_dict() == pytest.approx({"b": 1.0, "c": 2.0})
    assert set(found["baseline"]) == {"a"}


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="at least two runs"):
        compare([arm("a", 0.0)])
    with pytest.raises(UserError, match='two arms are called "a": give them names of their own, --group NAME=RUN'):
        compare([arm("a", 0.0), arm("a", 1.0)])
    with pytest.raises(UserError, match='"a" and "b" have no number of the same step in common'):
        compare([arm("a", 0.0, steps=(0,)), arm("b", 1.0, steps=(1,))])


def test_curves_are_the_values_of_every_run() -> None:
    found = curves([arm("a", 0.0, 0.5), arm("b", 1.0)])
    assert found["run"].unique().tolist() == ["a/0", "a/1", "b/0"]
    one = found[(found["run"] == "a/1") & (found["component"] == "ov_circuit") & (found["step"] == 10)]
    assert one["value"].tolist() == pytest.approx([12.0, 13.0])
