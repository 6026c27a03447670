"""Observers while a run trains: what they are shown and when, and that nothing of theirs reaches training."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import DataLayout
from pico_contract.lock import LockHeldError
from pico_contract.observer import Observation, ObservedRun
from pico_contract.schema import RunManifest
from pico_train import train
from pico_train.data.packed import PackedData
from pico_train.log.metrics import read_metrics
from pico_train.method.plain import Plain
from pico_train.observe import plugins
from pico_train.observe.snapshot import Observer
from pico_train.run import RunConfig, build
from torch import nn

Tiny = Callable[..., RunConfig]
ALL = ["train.gradients", "train.microbatch_gradients", "val.gradients", "val.activations"]


class Recorder:
    """Keeps what it is shown; `at` is the option that names its directory."""

    made: list[Recorder]

    def __init__(self, run: ObservedRun, options: Mapping[str, Any]) -> None:
        self.run, self.results = run, run.layout.analysis(options.get("at", "recorded")).root
        self.seen: list[Observation] = []
        self.told: list[str] = []
        type(self).made.append(self)

    def resume(self, step: int) -> None:
        self.told.append(f"resume {step}")

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation)

    def close(self) -> None:
        self.told.append("close")


class Failing(Recorder):
    """Fails at step 4 and when it is closed."""

    def observe(self, observation: Observation) -> None:
        super().observe(observation)
        if observation.step == 4:
            raise RuntimeError("the third\nmatrix did not converge")

    def close(self) -> None:
        raise ValueError("nothing to close")


class Meddling(Recorder):
    """Does to torch what an analysis may."""

    def observe(self, observation: Observation) -> None:
        torch.manual_seed(observation.step)
        torch.rand(7)
        torch.set_num_threads(3)
        assert not torch.is_grad_enabled()
        raise KeyError("and then fails")


class Unready(Recorder):
    def resume(self, step: int) -> None:
        raise PermissionError(13, "Permission denied", str(self.results))


class Noisy(Plain):
    """Draws from torch's own generator, which any observer could disturb."""

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        total, terms, scalars = super().loss(model, batch, step)
        return total * (1 + 0.1 * torch.rand(())), terms, scalars


class TakenOver(Plain):
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step == 6:
            raise LockHeldError("another process has the run")


class Entry:
    """As importlib.metadata gives it."""

    def __init__(self, name: str, target: Any) -> None:
        self.name, self._target = name, target

    def load(self) -> Any:
        if isinstance(self._target, Exception):
            raise self._target
        return self._target


def refusing(run: ObservedRun, options: Mapping[str, Any]) -> Any:
    raise UserError('unknown key "metrcs"; did you mean "metrics"?')


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """The observers that are installed for these tests; those that were made."""
    Recorder.made = []
    found = {"record": Recorder, "fail": Failing, "meddle": Meddling, "unready": Unready, "refuse": refusing}
    entries = [Entry(name, target) for name, target in found.items()] + [Entry("broken", ImportError("no pandas"))]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == "pico.observers" else [])
    monkeypatch.setitem(sys.modules, "users_live", sys.modules[__name__])
    return Recorder.made


def observe(name: str, every: int = 4, **options: Any) -> dict[str, Any]:
    return {"name": name, "every": every, "options": options}


def truth(config: RunConfig) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    rows = [{**row, "tokens_per_second": None, "mfu": None} for row in read_metrics(config.layout.metrics)]
    return rows, codec.read_tensors(config.layout.checkpoint(10) / "model.safetensors")


def test_it_sees_what_a_snapshot_holds_with_nothing_stored(tiny: Tiny, installed: list[Recorder]) -> None:
    """Names, tensors and terms are those of a run that stores its snapshots, at the steps that are due."""
    shared = {"train.micro_batch_size": 2, "snapshot.kinds": ALL, "checkpoint.every": 0}
    stored = tiny(name="stored", **shared)
    train(stored, quiet=True)
    config = tiny(name="live", **shared, **{"snapshot.every": 0, "observe": [observe("record")]})
    train(config, quiet=True)
    assert codec.listed_steps(config.layout.snapshots) == []
    (recorder,) = installed
    assert recorder.told == ["resume 0", "close"]
    assert [one.step for one in recorder.seen] == [0, 4, 8, 10]
    assert [one.tokens for one in recorder.seen] == [0, 512, 1024, 1280]
    held = {("weights", None), *((kind, split) for split, kind in (name.split(".") for name in ALL))}
    assert set(recorder.run.available) == held
    assert [one.tensors.keys() for one in recorder.seen[:3]] == [held] * 3
    assert recorder.seen[3].tensors.keys() == {pair for pair in held if pair[1] != "train"}
    assert [one.terms for one in recorder.seen] == [(32,) * 4] * 3 + [()]
    assert recorder.run.model["num_key_value_heads"] == 2
    at_four = recorder.seen[1].tensors
    for (kind, split), tensors in at_four.items():
        file = stored.layout.snapshot(4) / f"{f'{split}.' if split else ''}{kind}.safetensors"
        expected = codec.read_tensors(file)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected), kind
    assert {name.removesuffix(".weight") for name in at_four["weights", None]} == set(recorder.run.modules)


def test_weights_are_shown_where_a_checkpoint_holds_them(tiny: Tiny, installed: list[Recorder]) -> None:
    config = tiny(observe=[observe("record")])
    train(config, quiet=True)
    saved = codec.read_tensors(config.layout.checkpoint(4) / "model.safetensors")
    weights = installed[0].seen[1].tensors["weights", None]
    assert len(weights) == 14
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights.items())
    assert not (config.layout.snapshot(4) / "weights.safetensors").exists()


def test_one_pass_serves_snapshot_and_observers(
    tiny: Tiny, installed: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    original = Observer._probe_pass
    monkeypatch.setattr(Observer, "_probe_pass", lambda *given: passes.append(1) or original(*given))
    config = tiny(observe=[observe("record", 2), observe("record", 5, at="other")])
    train(config, quiet=True)
    assert [[one.step for one in recorder.seen] for recorder in installed] == [[0, 2, 4, 6, 8, 10], [0, 5, 10]]
    assert codec.listed_steps(config.layout.snapshots) == [0, 1, 2, 4, 8, 10]
    assert len(passes) == len({0, 2, 4, 6, 8, 10} | {0, 5, 10} | {0, 1, 2, 4, 8, 10})


def test_an_observed_run_equals_an_unobserved_one(tiny: Tiny) -> None:
    """Bit for bit, whatever the observers do to torch's generator, threads and gradients, and though they fail."""
    shared = {"method.name": "users_live:Noisy", "snapshot.every": 0, "train.micro_batch_size": 4}
    runs = [tiny(name="off", **shared)]
    runs.append(tiny(name="on", **shared, observe=[observe("meddle", 1), observe("record", 3, at="other")]))
    found = []
    for config in runs:
        torch.manual_seed(0)
        train(config, quiet=True)
        found.append(truth(config))
    (before, weights), (after, observed) = found
    assert before == after
    assert all(torch.equal(weights[name], observed[name]) for name in weights)
    entries = [json.loads(line) for line in runs[1].layout.observer_failures.read_text().splitlines()]
    assert [one["error"] for one in entries] == ["KeyError: 'and then fails'"] * 11


def test_a_failure_costs_its_measurement_and_is_told_and_recorded(
    tiny: Tiny, installed: list[Recorder], capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny(observe=[observe("fail"), observe("record", at="other")])
    assert train(config).status == "finished"
    said = capfd.readouterr().out
    assert (
        'the observer "fail" failed at step 4 (RuntimeError: the third matrix did not converge); training goes' in said
    )
    assert [[one.step for one in recorder.seen] for recorder in installed] == [[0, 4, 8, 10]] * 2
    entries = [json.loads(line) for line in config.layout.observer_failures.read_text().splitlines()]
    assert [(one["step"], one["observer"], one["error"]) for one in entries] == [
        (4, "fail", "RuntimeError: the third matrix did not converge"),
        (10, "fail", "ValueError: nothing to close"),
    ]
    assert all("in observe" in one["traceback"] or "in close" in one["traceback"] for one in entries)
    assert codec.listed_steps(config.layout.snapshots) == [0, 1, 2, 4, 8, 10]


def test_what_cannot_begin_ends_the_start(tiny: Tiny) -> None:
    config = tiny(observe=[observe("unready")])
    with pytest.raises(PermissionError):
        train(config, quiet=True)
    assert not config.layout.metrics.read_text()
    manifest = codec.read_manifest(config.layout.manifest, RunManifest)
    assert (manifest.status, manifest.step) == ("failed", 0)
    assert "Permission denied" in manifest.message


def test_a_continued_run_says_from_where_and_shows_that_step_again(
    tiny: Tiny, installed: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observers may come, go and change between sessions: they are no part of what a run is."""

    def crash(stage: str, path: Path) -> None:
        if stage == "before_rename" and path.name == "step_00000008":
            raise RuntimeError("the end of the process")

    monkeypatch.setattr(codec, "on_stage", crash)
    with pytest.raises(RuntimeError):
        train(tiny(**{"snapshot.every": 0, "observe": [observe("record", 3)]}), quiet=True)
    monkeypatch.setattr(codec, "on_stage", lambda stage, path: None)
    train(tiny(**{"snapshot.every": 0, "observe": [observe("record", 2)]}), quiet=True)
    first, second = installed
    # Training has noticed the crash of the thread that writes at its next occasion, or a few updates later.
    assert (first.told, [one.step for one in first.seen][:3]) == (["resume 0", "close"], [0, 3, 6])
    assert (second.told, [one.step for one in second.seen]) == (["resume 4", "close"], [4, 6, 8, 10])


def test_whoever_lost_the_run_to_another_process_writes_no_more(tiny: Tiny, installed: list[Recorder]) -> None:
    config = tiny(**{"observe": [observe("record")], "method.name": "users_live:TakenOver"})
    with pytest.raises(LockHeldError):
        train(config, quiet=True)
    assert installed[0].told == ["resume 0"]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (
            [observe("recrd")],
            r'observe\.0\.name is "recrd", which is not an installed observer \(installed: .*reco',
        ),
        ([observe("broken")], r'observe\.0\.name is "broken", which cannot be imported: no pandas'),
        ([observe("refuse")], r'observe\.0\.options: unknown key "metrcs"; did you mean "metrics"\?'),
        ([observe("record"), observe("record", 2)], r"observe\.1 and observe\.0 both write to .*recorded: give one"),
    ],
)
def test_mistakes_are_found_before_anything_is_done(tiny: Tiny, entries: list[Any], sentence: str) -> None:
    config = tiny(observe=entries)
    with pytest.raises(UserError, match=f"^test.yaml: {sentence}"):
        train(config, source="test.yaml", quiet=True)
    assert not config.layout.root.exists()


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            {"name": "record", "evry": 3},
            r'unknown key "observe\.0\.evry" in section "observe\.0"; did you mean "every"',
        ),
        ({"name": "record", "every": 0}, r"observe\.0\.every: should be greater than or equal to 1 \(it is 0\)"),
        ({"every": 3}, r'the key "observe\.0\.name" is missing'),
    ],
)
def test_a_wrong_entry_is_named(tiny: Tiny, entry: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^test.yaml: {sentence}"):
        tiny(observe=[entry])


def test_there_is_something_to_observe(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"snapshot\.modules is empty; to observe nothing, .* and observe to \[\]"):
        tiny(**{"snapshot.every": 0, "snapshot.modules": [], "observe": [observe("record")]})
    config = tiny(**{"snapshot.every": 0, "snapshot.modules": ["*_proj"], "observe": [observe("record")]})
    data = PackedData.open(config.data.path)
    monkeypatch.delitem(data.manifest.splits, "validation")
    monkeypatch.setattr(PackedData, "open", lambda path, stream: data)
    with pytest.raises(UserError, match=r"observe is not empty, but .* has no validation rows .* and observe=\[\]"):
        build(config)
    assert DataLayout(config.data.path).manifest.is_file()
