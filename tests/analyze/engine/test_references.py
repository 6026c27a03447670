"""Similarities of every pair of steps, of two runs, and of the layers of a step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pico_analyze import measure, open_run
from pico_analyze.engine import loader
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.metrics import METRICS, pair
from pico_analyze.sources.run import Run
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import MANIFEST, RunLayout, observed_file

STEPS = (0, 10, 20, 30)
UP, Q = "model.layers.{}.mlp.up_proj", "model.layers.{}.self_attn.q_proj"
ACTIVATIONS: dict[str, Any] = {"components": ["q_proj", "up_proj"], "kinds": ["activations"]}


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """||Y'X||^2 / (||X'X|| ||Y'Y||), columns centred."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def array(run: Run, step: int, kind: str, module: str) -> np.ndarray:
    return run.tensor(step, kind, module, None if kind == "weights" else "val").double().numpy()


def write_probe(run: Run, tokens: torch.Tensor) -> Run:
    codec.save_tensors(run.layout.probe, {"rows": torch.arange(len(tokens)), "tokens": tokens.int()})
    return open_run(run.layout.root)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is read of runs."""
    found: list[tuple[Any, ...]] = []
    original = Run.tensor

    def counted(self: Run, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        found.append((self.name, step, kind, module))
        return original(self, step, kind, module, split)

    monkeypatch.setattr(Run, "tensor", counted)
    return found


def test_all_pairs_are_each_step_with_each_earlier_one(new_run: Callable[..., Run]) -> None:
    run = new_run(steps=STEPS)
    frame = measure(run, ["cka", "relative_distance", "gini"], **ACTIVATIONS, reference="all")
    assert len(frame) == 4 * (4 + 6 + 6)
    for row in frame[frame["metric"] != "gini"].itertuples():
        x, y = (array(run, step, "activations", row.module) for step in (row.step, row.reference_step))
        expected = cka(x, y) if row.metric == "cka" else np.linalg.norm(x - y) / np.linalg.norm(y)
        assert row.value == pytest.approx(expected, rel=1e-9)
        assert row.step > row.reference_step
        assert (row.reference_run, row.reference_module) == (run.name, row.module)
    assert frame.loc[frame["metric"] == "gini", "reference_step"].isna().all()


def test_all_pairs_equal_each_reference_by_itself(new_run: Callable[..., Run]) -> None:
    """Heads of a circuit and a metric with a direction among them."""
    run = new_run(steps=STEPS)
    asked: dict[str, Any] = {"metrics": ["pwcca", "cka_debiased"], "components": ["k_proj", "ov_circuit"]}
    every = measure(run, **asked, kinds=["activations"], reference="all")
    alone = pd.concat([measure(run, **asked, kinds=["activations"], reference=step) for step in STEPS])
    alone = alone[alone["step"] > alone["reference_step"]]
    keys = ["metric", "module", "head", "step", "reference_step"]
    tables = [frame.sort_values(keys).reset_index(drop=True) for frame in (every, alone)]
    assert (tables[0]["status"] == "ok").any()
    pd.testing.assert_frame_equal(*tables, rtol=1e-12)


@pytest.mark.parametrize("room", [None, 0, 10_000])
def test_memory_is_bounded_and_without_need_each_matrix_is_read_once(
    new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, read: list[tuple[Any, ...]], room: int | None
) -> None:
    run = new_run(steps=tuple(range(7)))
    expected = measure(run, ["cka", "per"], ["up_proj"], kinds=["activations"], reference="all")
    assert len(read) == len(set(read)) == 2 * 7
    read.clear()
    if room is not None:
        monkeypatch.setattr(loader, "_KEPT_BYTES", room)
        monkeypatch.setattr(loader, "_BATCH_BYTES", 0)
    kept: list[int] = []
    original = loader.ReferenceLoader.load

    def watched(self: loader.ReferenceLoader, step: int) -> Any:
        references = original(self, step)
        kept.append(len(self.cache))
        return references

    monkeypatch.setattr(loader.ReferenceLoader, "load", watched)
    frame = measure(run, ["cka", "per"], ["up_proj"], kinds=["activations"], reference="all")
    pd.testing.assert_frame_equal(frame, expected, rtol=1e-12)
    a_step = 8 * (3 * 12 * 24 + 5 * 12**2)
    assert max(kept) == {None: 6, 0: 1, 10_000: max(1, 10_000 // a_step)}[room]
    assert (len(read) == 2 * 7) == (room is None)


def test_a_new_step_computes_only_its_own_pairs(
    new_run: Callable[..., Run], tmp_path: Path, read: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(steps=STEPS)
    asked: dict[str, Any] = {**ACTIVATIONS, "reference": "all", "cache": tmp_path / "cache"}
    crossed: list[int] = []

    def counted(x: Any, y: Any) -> Any:
        crossed.append(1)
        return pair.cka(x, y)

    monkeypatch.setitem(METRICS, "cka", replace(METRICS["cka"], fn=counted))
    measure(run, ["cka"], **asked, steps=[0, 10, 30])
    assert len(crossed) == 4 * 3
    crossed.clear()
    frame = measure(run, ["cka"], **asked)
    assert len(crossed) == 4 * 3  # 20 with 0 and with 10, 30 with 20
    read.clear()
    again = measure(run, ["cka"], **asked)
    assert read == []
    pd.testing.assert_frame_equal(again, frame, check_exact=True)


def test_a_file_that_cannot_be_read_costs_its_own_pairs(layout: RunLayout) -> None:
    file = layout.snapshot(1) / observed_file("val", "activations")
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.warns(DamagedWarning, match="step 1 ") as caught:
        frame = measure(open_run(layout.root), ["cka"], **ACTIVATIONS, reference="all")
    assert len(caught) == 1
    found = frame.groupby(["step", "reference_step"])["status"].unique().apply(list).to_dict()
    assert found == {(1, 0): ["damaged"], (2, 0): ["ok"], (2, 1): ["damaged"]}


def test_across_runs_is_each_step_with_that_of_the_other(run: Run, new_run: Callable[..., Run]) -> None:
    other = new_run(steps=(1, 2, 5))
    frame = measure(
        run, ["cka", "cosine", "relative_distance"], ["q_proj"], kinds=["activations", "weights"], reference=other
    )
    pairs = frame[["step", "reference_run", "reference_step"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [[1, "new", 1], [2, "new", 2]]
    for row in frame.itertuples():
        x, y = (array(one, row.step, row.kind, row.module) for one in (run, other))
        expected = {
            "cka": cka,
            "cosine": lambda x, y: (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y),
            "relative_distance": lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y),
        }[row.metric](x, y)
        assert row.value == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("reference", "step"), [("first", 1), ("last", 5), (2, 2)])
def test_a_step_of_the_other_run(run: Run, new_run: Callable[..., Run], reference: str | int, step: int) -> None:
    other = new_run(steps=(1, 2, 5))
    frame = measure(run, ["cka"], ["q_proj"], kinds=["activations"], reference=(other, reference))
    assert set(frame["reference_step"]) == {step}
    assert set(frame["step"]) == {0, 1, 2}
    row = frame.iloc[0]
    expected = cka(array(run, 0, "activations", row["module"]), array(other, step, "activations", row["module"]))
    assert row["value"] == pytest.approx(expected, rel=1e-9)


def test_a_run_and_itself_are_alike(run: Run) -> None:
    frame = measure(run, ["cka", "cka_rbf", "cosine"], reference=run, kinds=["activations", "weights"])
    assert frame["value"].to_numpy() == pytest.approx(1, abs=1e-9)
    assert (frame["step"] == frame["reference_step"]).all()


def test_steps_that_are_asked_for_and_the_other_run_lacks_are_missing(run: Run, new_run: Callable[..., Run]) -> None:
    other = new_run(steps=(1, 2))
    frame = measure(run, ["cka"], ["q_proj"], steps=[0, 2], reference=other)
    assert frame.groupby("step")["status"].unique().apply(list).to_dict() == {0: ["missing"], 2: ["ok"]}


def test_runs_without_a_step_in_common(run: Run, new_run: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match='"small" and run "new" have no step of the same kind in common'):
        measure(run, ["cka"], ["q_proj"], reference=new_run(steps=(7, 8)))


def test_damage_of_the_other_run_is_said_and_not_kept(run: Run, new_run: Callable[..., Run], tmp_path: Path) -> None:
    file = new_run().layout.snapshot(1) / observed_file("val", "activations")
    whole = file.read_bytes()
    file.write_bytes(b"\xff" * len(whole))
    asked: dict[str, Any] = {**ACTIVATIONS, "cache": tmp_path / "cache"}
    with pytest.warns(DamagedWarning, match=r"step 1 .*new.*activations"):
        frame = measure(run, ["cka"], **asked, reference=open_run(tmp_path / "new"))
    assert set(frame.loc[frame["status"] == "damaged", "step"]) == {1}
    file.write_bytes(whole)
    assert set(measure(run, ["cka"], **asked, reference=open_run(tmp_path / "new"))["status"]) == {"ok"}


def test_a_step_of_the_other_run_that_is_not_intact_is_said(run: Run, new_run: Callable[..., Run]) -> None:
    layout = new_run().layout
    (layout.snapshot(1) / MANIFEST).write_text("{")
    with pytest.warns(DamagedWarning, match=r"step 1 is left out in part: .*new"):
        frame = measure(run, ["cka"], **ACTIVATIONS, reference=open_run(layout.root))
    assert set(frame["step"]) == {0, 2}


def test_results_are_those_of_the_other_runs_content(run: Run, new_run: Callable[..., Run], tmp_path: Path) -> None:
    asked: dict[str, Any] = {**ACTIVATIONS, "cache": tmp_path / "cache"}
    other = new_run()
    measure(run, ["cka"], **asked, reference=other)
    snapshot = other.layout.snapshot(1)
    file = snapshot / observed_file("val", "activations")
    codec.save_tensors(file, {name: tensor.flip(0) for name, tensor in codec.read_tensors(file).items()})
    raw = json.loads((snapshot / MANIFEST).read_text())
    raw["files"][file.name] = {"size": file.stat().st_size, "sha256": codec.sha256_file(file)}
    (snapshot / MANIFEST).write_text(json.dumps(raw))
    other = open_run(other.layout.root)
    kept = measure(run, ["cka"], **asked, reference=other)
    pd.testing.assert_frame_equal(kept, measure(run, ["cka"], **ACTIVATIONS, reference=other), rtol=1e-12)


def test_activations_of_other_tokens_are_refused(run: Run, new_run: Callable[..., Run]) -> None:
    tokens = torch.arange(12 * 9).reshape(12, 9)
    ours, same = write_probe(run, tokens), write_probe(new_run(), tokens)
    assert set(measure(ours, ["cka"], **ACTIVATIONS, reference=same)["status"]) == {"ok"}
    other = write_probe(new_run(), tokens + 1)
    with pytest.raises(UserError, match=r'"small" at step 0 and "new" at step 0 are of different tokens .their probe'):
        measure(ours, ["cka"], **ACTIVATIONS, reference=other)
    assert not measure(ours, ["cosine"], ["q_proj"], kinds=["weights"], reference=other).empty
    manifest = same.layout.snapshot(1) / MANIFEST
    manifest.write_text(manifest.read_text().replace('"last"', '"sampled"'))
    with pytest.raises(UserError, match=r"at step 1 are of different tokens .their row map"):
        measure(ours, ["cka"], **ACTIVATIONS, reference=open_run(write_probe(same, tokens).layout.root))


def test_layers_are_each_compared_with_the_earlier_ones(
    new_run: Callable[..., Run], make_shape: Any, read: list[tuple[Any, ...]]
) -> None:
    run = new_run(make_shape(layers=3), steps=(0, 5))
    read.clear()
    frame = measure(
        run, ["cka", "per", "cosine"], ["q_proj", "k_proj", "ov_circuit"], kinds=["activations"], reference="layers"
    )
    similar = frame[frame["reference_module"].notna()]
    assert (similar["step"] == similar["reference_step"]).all()
    assert set(similar["component"]) == {"self_attn.q_proj", "self_attn.k_proj"}
    assert len(similar) == 2 * 2 * 2 * 3
    for row in similar.itertuples():
        x, y = (array(run, row.step, "activations", module) for module in (row.module, row.reference_module))
        expected = cka(x, y) if row.metric == "cka" else (x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum())
        assert row.value == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert row.module > row.reference_module
    assert set(frame.loc[frame["metric"] == "per", "component"]) == {*similar["component"], "ov_circuit"}


def test_layers_are_kept_for_those_that_were_compared(run: Run, tmp_path: Path, read: list[tuple[Any, ...]]) -> None:
    asked: dict[str, Any] = {"kinds": ["activations"], "reference": "layers", "cache": tmp_path}
    first = measure(run, ["cka"], ["up_proj"], **asked)
    assert len(read) == len(set(read)) == 2 * 3
    read.clear()
    pd.testing.assert_frame_equal(measure(run, ["cka"], ["up_proj"], **asked), first, check_exact=True)
    assert read == []
    with pytest.raises(UserError, match="nothing to measure"):
        measure(run, ["cka"], ["model.layers.0.mlp.up_proj"], **asked)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"reference": "al"}, 'or a step but is "al"; did you mean "all"?'),
        ({"reference": "same"}, "name it with reference_run, in Python give the run"),
        ({"reference": "layer"}, 'or a step but is "layer"; did you mean "layers"?'),
        ({"reference": Path("runs/other")}, "reference should be a step, a name or another run but is"),
        ({"null_draws": 1}, "null_draws should be an integer of at least 2 but is 1"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        measure(run, **arguments)
    assert sentence in str(error.value)


@pytest.mark.parametrize("reference", ["previous", "all", "layers", 3, "lst"])
def test_mistakes_about_another_run(run: Run, new_run: Callable[..., Run], reference: str | int) -> None:
    with pytest.raises(UserError, match=r"same, first, last or a step|nearest is 2|did you mean"):
        measure(run, reference=(new_run(), reference))
