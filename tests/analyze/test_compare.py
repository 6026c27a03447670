"""Differences between arms, against closed forms and scipy, and what is not claimed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pico_analyze.compare import COLUMNS, Arm, compare, curves, hedges_g, interval, notes
from pico_analyze.table import from_rows
from pico_contract.errors import UserError
from scipy import stats


@dataclass
class Manifest:
    """What the comparison reads of run.json."""

    seeds: dict[str, int]
    data: dict[str, Any] = field(default_factory=lambda: {"fingerprint": "f", "order": "shuffled"})
    method: str = "plain"


@dataclass
class Measured:
    """A source that was measured before: no tensor is read."""

    name: str
    manifest: Manifest
    model: dict[str, Any] = field(default_factory=lambda: {"hidden_size": 8})
    steps: tuple[int, ...] = (0, 10)
    per_step: int = 100

    def tokens(self, step: int) -> int:
        return step * self.per_step


Value = Callable[[int, int, int], float | None]


def table(value: Value, steps: Sequence[int] = (0, 10), **columns: Any) -> pd.DataFrame:
    """PER of weights of two layers, of q_proj and of the two heads of a circuit: value(step, layer, head)."""
    rows = []
    for step, layer, head in itertools.product(steps, (0, 1), (None, 0, 1)):
        component = "q_proj" if head is None else "ov_circuit"
        place = {"step": step, "component": component, "layer": layer, "head": head, "module": f"{layer}.{component}"}
        number = value(step, layer, head or 0)
        what = {"kind": "weights", "metric": "per", "unit": "1", "variant": "{}", "status": "ok" if number else "zero"}
        rows.append({"run": "r", **place, **what, "value": number, **columns})
    return from_rows(rows)


def arm(name: str, *offsets: float, seeds: Sequence[int] | None = None, **of: Any) -> Arm:
    """Runs whose values are 1 + step + layer + head + offset."""
    chosen = range(len(offsets)) if seeds is None else seeds
    runs: list[Any] = [Measured(f"{name}{seed}", Manifest({"init": seed})) for seed in chosen]
    tables = [table(lambda step, layer, head, o=o: 1 + step + layer + head + o, **of) for o in offsets]
    return Arm(name, runs, tables)


def row(found: pd.DataFrame, step: int | None, component: str = "q_proj", layer: int = 0) -> Any:
    at = found["step"].isna() if step is None else found["step"] == step
    chosen = found[at & (found["component"] == component) & (found["layer"] == layer)]
    assert len(chosen) == 1
    return chosen.iloc[0]


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
        assert found[["low", "high", "effect_size"]].isna().all(axis=None)
        assert found["difference"].notna().all()
        assert "no interval is claimed" in " ".join(notes(arms, found))


def test_runs_of_the_same_seeds_are_paired_in_any_order() -> None:
    found = compare([arm("a", 0.0, 5.0, 9.0), arm("b", 10.0, 1.0, 6.0, seeds=(2, 0, 1))])
    assert found["paired"].all()
    one = row(found, 10)
    assert one["difference"] == pytest.approx(1.0)
    assert (one["low"], one["high"]) == (pytest.approx(1.0), pytest.approx(1.0)), "each pair differs by exactly 1"


@pytest.mark.parametrize("seeds", [(3, 4, 5), (0, 1, 1), (0, 1)])
def test_runs_of_other_seeds_are_not_paired(seeds: tuple[int, ...]) -> None:
    found = compare([arm("a", 0.0, 5.0, 9.0), arm("b", *(1.0 + seed for seed in seeds), seeds=seeds)])
    assert not found["paired"].any()
    assert (found["low"] < found["high"]).all()


def test_the_interval_is_that_of_a_percentile_bootstrap() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(0, 1, (1, 12)), generator.normal(0.5, 2, (1, 15))

    def difference(x: Any, y: Any, axis: int = -1) -> Any:
        return np.mean(y, axis=axis) - np.mean(x, axis=axis)

    theirs = stats.bootstrap((x[0], y[0]), difference, n_resamples=20_000, method="percentile", rng=2)
    low, high = interval(x, y, False, seed=3)
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.08)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.08)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    x, y = generator.normal(0, 1, (4000, 20)), generator.normal(0.3, 1, (4000, 20))
    low, high = interval(x, y, False, seed=6)
    assert np.mean((low <= 0.3) & (high >= 0.3)) == pytest.approx(0.935, abs=0.02)


def test_the_same_seed_gives_the_same_interval_and_rows_do_not_depend_on_each_other() -> None:
    generator = np.random.default_rng(7)
    x, y = generator.normal(size=(4500, 3)), generator.normal(size=(4500, 4))
    low, high = interval(x, y, False, seed=1)
    again, _ = interval(x[4400:], y[4400:], False, seed=1)
    assert np.array_equal(low[4400:], again)
    assert (low <= high).all()
    assert not np.array_equal(low, interval(x, y, False, seed=2)[0])


def test_effect_size_is_hedges_g() -> None:
    x, y = np.array([[1.0, 2.0, 3.0]]), np.array([[3.0, 4.0, 5.0, 8.0]])
    pooled = np.sqrt((2 * 1.0 + 3 * np.var(y, ddof=1)) / 5)
    assert hedges_g(x, y)[0] == pytest.approx(3.0 / pooled * (1 - 3 / 19))
    assert np.isnan(hedges_g(np.ones((1, 3)), np.ones((1, 3)))[0]), "no run differs from another"


def test_what_one_run_lacks_has_no_difference() -> None:
    a, b = arm("a", 0.0, 0.1), arm("b", 1.0, 1.1)
    b.tables[1] = table(lambda step, layer, head: None if (step, layer) == (10, 1) else 2.0 + step)
    found = compare([a, b])
    absent = found[found["status"] == "missing"]
    assert {(row.layer, row.component) for row in absent.itertuples()} == {(1, "q_proj"), (1, "ov_circuit")}
    assert absent["step"].fillna(-1).unique().tolist() == [-1, 10]
    assert absent[["difference", "low", "high", "effect_size"]].isna().all(axis=None)
    assert "4 differences have no value, since a run has none there." in notes([a, b], found)


def test_steps_that_not_every_run_has_are_left_out_and_named() -> None:
    a, b = arm("a", 0.0, steps=(0, 5, 10, 20)), arm("b", 0.0, steps=(0, 10, 30))
    found = compare([a, b])
    assert sorted(found["step"].dropna().unique()) == [0, 10]
    assert "Steps that not every run has were left out: 5, 20, 30." in notes([a, b], found)


def test_several_arms_are_each_compared_with_the_first() -> None:
    found = compare([arm("a", 0.0), arm("b", 1.0), arm("c", 2.0)])
    assert found.groupby("arm")["difference"].mean().to_dict() == pytest.approx({"b": 1.0, "c": 2.0})
    assert set(found["baseline"]) == {"a"}


def test_a_note_says_how_many_intervals_chance_would_put_aside_of_0() -> None:
    arms = [arm("a", 0.0, 0.1, 0.2), arm("b", 1.0, 1.1, 1.2)]
    found = " ".join(notes(arms, compare(arms)))
    assert "12 intervals of 95% each: if nothing differed, about 1 would leave out 0 by chance, and 12 do" in found
    assert "not corrected for their number" in found
    assert "Intervals over 3 runs are rough" in found


def test_notes_say_in_what_runs_differ_beyond_their_seeds() -> None:
    a, b = arm("a", 0.0), arm("b", 1.0)
    assert not [note for note in notes([a, b], compare([a, b])) if "differ in" in note]
    run: Any = b.runs[0]
    run.manifest.data = {"fingerprint": "g", "order": "shuffled"}
    run.manifest.method = "relora"
    run.model = {"hidden_size": 16}
    run.per_step = 50
    found = notes([a, b], compare([a, b]))
    assert found[:4] == [
        "The runs differ in data (a0: f; b0: g).",
        "The runs differ in model (a0: hidden_size 8; b0: hidden_size 16).",
        "The runs differ in method (a0: plain; b0: relora).",
        "At step 10 the runs have read different numbers of tokens (a0 1000, b0 500).",
    ]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="at least two runs"):
        compare([arm("a", 0.0)])
    with pytest.raises(UserError, match='two arms are called "a"'):
        compare([arm("a", 0.0), arm("a", 1.0)])
    with pytest.raises(UserError, match='"a" and "b" have no number of the same step in common'):
        compare([arm("a", 0.0, steps=(0,)), arm("b", 1.0, steps=(1,))])


def test_curves_are_the_values_of_every_run() -> None:
    found = curves([arm("a", 0.0, 0.5), arm("b", 1.0)])
    assert found["run"].unique().tolist() == ["a/0", "a/1", "b/0"]
    one = found[(found["run"] == "a/1") & (found["component"] == "ov_circuit") & (found["step"] == 10)]
    assert one["value"].tolist() == pytest.approx([12.0, 13.0])
