"""Trackers mirror metrics.jsonl, also after it was cut; one that fails ends nothing."""

from __future__ import annotations

import json
import shutil
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, get_args

import accelerate.tracking
import pytest
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_train import train
from pico_train.evaluate.results import evaluations_of, newest_evaluations
from pico_train.log.metrics import read_metrics
from pico_train.log.trackers import TRACKERS, TrackerName
from pico_train.run import RunConfig

Tiny = Callable[..., RunConfig]
Points = dict[str, list[tuple[int, float]]]


def expected(layout: RunLayout) -> Points:
    """What metrics.jsonl and the evaluations say."""
    points: Points = {}
    for row in read_metrics(layout.metrics):
        for name, value in row.items():
            if name not in ("step", "order_hash"):
                points.setdefault(name, []).append((row["step"], value))
    for step in range(11):
        for result in evaluations_of(layout, step):
            for name, measured in result.metrics.items():
                points.setdefault(f"{result.task}/{name}", []).append((step, measured.value))
    return points


def back_to(layout: RunLayout, step: int) -> None:
    """As if the session had been killed after `step` was saved, and went on for a while."""
    for later in layout.checkpoints.iterdir():
        if later > layout.checkpoint(step):
            shutil.rmtree(later)
    manifest = json.loads(layout.manifest.read_text())
    layout.manifest.write_text(json.dumps({**manifest, "status": "running", "step": step}))


def read_events(directory: Path) -> Points:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    events = accumulator.EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def close(found: Points, wanted: Points) -> None:
    """Event files hold float32: its unit roundoff is 6e-8."""
    assert {name: [step for step, _ in series] for name, series in found.items()} == {
        name: [step for step, _ in series] for name, series in wanted.items()
    }
    for name, series in wanted.items():
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in series], rel=1e-6), name


def test_tensorboard_tells_what_metrics_tell_also_after_a_resume_from_an_older_step(tiny: Tiny) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    config = tiny(**{"log.trackers": ["tensorboard"], "snapshot.every": 0})
    layout = config.layout
    train(config, quiet=True)
    close(read_events(layout.tensorboard), expected(layout))
    for step in (8, 4):
        back_to(layout, step)
        train(config, quiet=True)
        found = read_events(layout.tensorboard)
        assert [s for s, _ in found["loss"]] == list(range(1, 11))
        close(found, expected(layout))
    assert layout.cuts == 2


def test_tensorboard_that_is_asked_for_late_is_told_the_history(tiny: Tiny) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    config = tiny(**{"snapshot.every": 0, "log.every": 3})
    train(config, quiet=True)
    back_to(config.layout, 8)
    train(tiny(**{"log.trackers": ["tensorboard"]}), quiet=True)
    close(read_events(config.layout.tensorboard), expected(config.layout))


class StandIn:
    """A tracker run of a library that is not there: it keeps what it is told, by the name of the run."""

    runs: ClassVar[dict[str, list[tuple[int, dict[str, float]]]]] = {}
    settings: ClassVar[list[dict[str, Any]]] = []
    fail_at: int | None = None

    def __init__(self, project: str, **settings: Any) -> None:
        self.settings.append({"project": project, **settings})
        self.told = self.runs.setdefault(settings.get("id", settings["name"]), [])

    def start(self) -> None: ...

    def log(self, values: dict[str, float], step: int) -> None:
        if step == self.fail_at:
            raise ConnectionError("no network")
        self.told.append((step, values))

    def finish(self) -> None: ...


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    fresh = type("Fresh", (StandIn,), {"runs": {}, "settings": []})
    for name, kind in (("wandb", "WandBTracker"), ("trackio", "TrackioTracker")):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(accelerate.tracking, kind, fresh)
    return fresh


def series(told: list[tuple[int, dict[str, float]]]) -> Points:
    points: Points = {}
    for step, values in told:
        for name, value in values.items():
            points.setdefault(name, []).append((step, value))
    return points


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_history_that_was_taken_back_goes_on_as_another_tracker_run(
    tiny: Tiny, stand_in: type[StandIn], tracker: str
) -> None:
    config = tiny(**{"log.trackers": [tracker], "snapshot.every": 0})
    train(config, quiet=True)
    (first,) = stand_in.runs
    assert series(stand_in.runs[first]) == expected(config.layout)
    assert first.startswith("tiny-")
    back_to(config.layout, 4)
    train(config, quiet=True)
    assert list(stand_in.runs) == [first, first.replace("tiny-", "tiny-2-")]
    assert series(stand_in.runs[list(stand_in.runs)[1]]) == expected(config.layout)
    assert [s["group"] for s in stand_in.settings] == ["tiny", "tiny"]
    assert {s["project"] for s in stand_in.settings} == {"pico"}


def test_a_session_that_takes_nothing_back_continues_the_tracker_run(tiny: Tiny, stand_in: type[StandIn]) -> None:
    config = tiny(**{"log.trackers": ["wandb"], "snapshot.every": 0})
    train(config, quiet=True)
    (told,) = stand_in.runs.values()
    back_to(config.layout, 8)
    lines = config.layout.metrics.read_text().splitlines(keepends=True)
    config.layout.metrics.write_text("".join(lines[:8]))
    del told[8 + 2 :]  # eight rows, and evaluations after two of them
    train(config, quiet=True)
    assert list(stand_in.runs.values()) == [told]
    assert series(told) == expected(config.layout)


def test_a_tracker_that_fails_is_named_once_and_training_goes_on(
    tiny: Tiny, stand_in: type[StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.fail_at = 3
    config = tiny(**{"log.trackers": ["wandb", "trackio"], "snapshot.every": 0})
    assert train(config).status == "finished"
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("the tracker")]
    assert said == [
        f"the tracker {name} failed (ConnectionError: no network) and is off for this session;"
        " metrics.jsonl has every row"
        for name in ("wandb", "trackio")
    ]
    assert [row["step"] for row in read_metrics(config.layout.metrics)] == list(range(1, 11))
    assert len(newest_evaluations(config.layout)) == 1


def test_a_tracker_that_is_not_installed_is_refused_with_how_to_install_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = tiny(**{"log.trackers": ["wandb"]})
    with pytest.raises(UserError, match=r"wandb is not installed: pip install 'pico-train\[wandb\]'"):
        train(config, quiet=True)
    assert not config.layout.root.exists()


def test_every_name_of_a_tracker_has_an_entry() -> None:
    assert set(TRACKERS) == set(get_args(TrackerName))


@pytest.mark.slow
def test_wandb_offline_writes_a_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny(**{"log.trackers": ["wandb"], "snapshot.every": 0})
    assert train(config).status == "finished"
    (kept,) = (config.layout.logs / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20  # its own process writes the file
    while b"perplexity/loss" not in kept.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
