"""An interrupted run equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_contract import codec
from pico_contract.layout import RunLayout
from pico_contract.schema import SnapshotManifest
from pico_train import train
from pico_train.config import to_yaml
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

Tiny = Callable[..., RunConfig]


def tensors_of(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    files = sorted(directory.rglob("*.safetensors"))
    return {str(path.relative_to(directory)): codec.read_tensors(path) for path in files}


def truth(layout: RunLayout) -> list[dict[str, Any]]:
    """What metrics.jsonl says, the order's hash included; only the pace is a matter of the clock."""
    return [{**row, "tokens_per_second": None, "mfu": None} for row in read_metrics(layout.metrics)]


def evaluations(layout: RunLayout) -> dict[str, Any]:
    files = sorted(layout.evaluations.rglob("*.json"))
    return {str(p.relative_to(layout.evaluations)): json.loads(p.read_text())["metrics"] for p in files}


def assert_same_tensors(a: Path, b: Path) -> None:
    found, expected = tensors_of(a), tensors_of(b)
    assert found.keys() == expected.keys()
    for file, tensors in expected.items():
        assert tensors.keys() == found[file].keys()
        for name, tensor in tensors.items():
            assert torch.equal(found[file][name], tensor), f"{file}: {name}"


def assert_same_run(layout: RunLayout, whole: RunLayout) -> None:
    """Metrics with the order's hash, weights and optimizer of the last step, every snapshot, every evaluation."""
    assert truth(layout) == truth(whole)
    last = codec.listed_steps(whole.checkpoints)[-1]
    assert_same_tensors(layout.checkpoint(last), whole.checkpoint(last))
    steps = codec.intact_steps(whole.snapshots, SnapshotManifest, hashes=True)
    assert codec.intact_steps(layout.snapshots, SnapshotManifest, hashes=True) == steps
    assert steps
    for step in steps:
        assert_same_tensors(layout.snapshot(step), whole.snapshot(step))
        manifests = [json.loads((x.snapshot(step) / "manifest.json").read_text()) for x in (layout, whole)]
        for manifest in manifests:
            for key in ("created", "digest", "run"):
                del manifest[key]
        assert manifests[0] == manifests[1]
    assert evaluations(layout) == evaluations(whole)
    assert not [path for path in layout.root.rglob("*") if path.name.startswith(".")]
    assert json.loads(layout.manifest.read_text())["status"] == "finished"


class Crash(Exception):
    """Stands for the end of the process."""


def crash_at(monkeypatch: pytest.MonkeyPatch, stage: str, part: str) -> None:
    def here(name: str, path: Path) -> None:
        if name == stage and part in str(path):
            raise Crash

    monkeypatch.setattr(codec, "on_stage", here)


@pytest.fixture
def whole(tiny: Tiny) -> RunLayout:
    """The uninterrupted run."""
    config = tiny(name="whole")
    train(config, quiet=True)
    return config.layout


@pytest.fixture
def cut(tiny: Tiny, whole: RunLayout, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The same run, which crashed while it saved the checkpoint of step 8."""
    config = tiny(name="cut")
    crash_at(monkeypatch, "before_rename", "checkpoints/step_00000008")
    with pytest.raises(Crash):
        train(config, quiet=True)
    monkeypatch.undo()
    assert codec.listed_steps(config.layout.checkpoints) == [0, 4]
    return config


def test_a_crashed_run_continues_and_equals_the_uninterrupted_one(cut: RunConfig, whole: RunLayout) -> None:
    assert train(cut, quiet=True).status == "finished"
    assert_same_run(cut.layout, whole)
    moved = [row["step"] for row in read_metrics(cut.layout.logs / "metrics.cut-1.jsonl")]
    assert moved[:4] == [5, 6, 7, 8]  # and those of updates made before the crash of the writing thread was noticed


@pytest.mark.parametrize("damage", ["garbage", "[1, 2]", "5", '{"a": 1}', '{"step": 9, "lo'])
def test_a_damaged_line_of_the_metrics_costs_no_other(cut: RunConfig, whole: RunLayout, damage: str) -> None:
    lines = cut.layout.metrics.read_text().splitlines()
    cut.layout.metrics.write_text("\n".join([*lines[:2], damage, *lines[2:]]))
    train(cut, quiet=True)
    assert_same_run(cut.layout, whole)


def test_what_is_intact_is_not_written_again(cut: RunConfig) -> None:
    layout = cut.layout
    intact = [layout.probe, *layout.checkpoint(4).rglob("*"), *layout.snapshot(4).rglob("*")]
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in intact}
    train(cut, quiet=True)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in intact} == before


def test_what_interrupted_writes_left_is_cleared(cut: RunConfig, whole: RunLayout) -> None:
    """`assert_same_run` finds what stays."""
    (cut.layout.evaluations / "step_00000004" / ".tmp-perplexity.json-1").write_text("{")
    (cut.layout.logs / ".tmp-metrics.cut-1.jsonl-1").write_text("{")
    train(cut, quiet=True)
    assert_same_run(cut.layout, whole)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "state/optimizer.safetensors", "state/scalars.json", "config.json"]
)
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_newest_checkpoint_is_named_and_skipped(
    cut: RunConfig, whole: RunLayout, capfd: pytest.CaptureFixture[str], file: str, harm: str
) -> None:
    path = cut.layout.checkpoint(4) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if harm == "flip" else bytes(content[:-1]))
    assert train(cut).status == "finished"
    said = capfd.readouterr().out
    assert "checkpoint 4 is damaged and skipped" in said
    assert str(path) in said
    assert "continuing" in said
    assert "from step 0" in said
    assert_same_run(cut.layout, whole)


def test_a_run_without_any_intact_checkpoint_begins_anew(cut: RunConfig, whole: RunLayout) -> None:
    for step in (0, 4):
        (cut.layout.checkpoint(step) / "model.safetensors").write_bytes(b"")
    assert train(cut, quiet=True).status == "finished"
    assert_same_run(cut.layout, whole)


def test_an_observation_that_is_missing_at_the_resumed_step_is_made_again(cut: RunConfig, whole: RunLayout) -> None:
    import shutil

    shutil.rmtree(cut.layout.snapshot(4))
    assert train(cut, quiet=True).status == "finished"
    assert_same_run(cut.layout, whole)


def test_a_line_of_metrics_that_was_cut_short_is_no_obstacle(cut: RunConfig, whole: RunLayout) -> None:
    with cut.layout.metrics.open("a") as handle:
        handle.write('{"step": 9, "lo')
    assert train(cut, quiet=True).status == "finished"
    assert_same_run(cut.layout, whole)


def test_other_conditions_are_said(cut: RunConfig, capfd: pytest.CaptureFixture[str]) -> None:
    raw = cut.model_dump(mode="json")
    raw["train"]["micro_batch"] = 4
    train(RunConfig.model_validate(raw))
    assert "not bit-identical to an uninterrupted run, for these differ: micro_batch 8 -> 4" in capfd.readouterr().out


def test_feeding_the_resolved_configuration_back_repeats_the_run(tiny: Tiny, whole: RunLayout, tmp_path: Path) -> None:
    again = train(whole.config, [f"runs_dir={tmp_path / 'again'}"], quiet=True)
    assert again.status == "finished"
    assert_same_run(RunLayout(tmp_path / "again" / "whole"), whole)


KILLER = """
import os, signal, sys
from pico_contract import codec
config, stage, part, nth = sys.argv[1:5]
seen = 0
def end_here(name, path):
    global seen
    if name == stage and part in str(path):
        seen += 1
        if seen == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)
codec.on_stage = end_here
sys.argv = ["pico-train", "run", config]
from pico_train.cli import main
main()
"""

FAULT_POINTS = [
    # Each list is one run, killed once at each point in turn: stage, directory, the how-manieth time it is reached.
    [
        ("temporary_created", "checkpoints/step_00000004", 1),
        ("file_written", "checkpoints/.tmp-step_00000004", 2),
        ("old_set_aside", "snapshots/step_00000001", 1),  # made again after the kill before: neither has the name
        ("before_rename", "checkpoints/step_00000004", 1),
        ("after_rename", "checkpoints/step_00000004", 1),
    ],
    [
        ("temporary_created", "snapshots/step_00000002", 1),
        ("file_written", "snapshots/.tmp-step_00000004", 2),  # half of a snapshot
        ("before_rename", "snapshots/step_00000004", 1),
        ("after_rename", "snapshots/step_00000008", 1),
    ],
    [
        ("file_written", "probe.safetensors", 1),
        ("before_rename", "checkpoints/step_00000000", 1),
        ("after_rename", "checkpoints/step_00000008", 1),
        ("after_rename", "checkpoints/step_00000040", 1),
    ],
]


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def forty(tiny: Tiny, tmp_path: Path) -> tuple[RunLayout, Path, RunLayout]:
    """(a run of 40 updates yet to be started, its YAML file, the same run carried through by another process)."""
    changes = {"train.steps": 40, "log.console_every": 10}
    paths = []
    for name in ("whole", "killed"):
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(to_yaml(tiny(name=name, **changes)))
    process = start("-m", "pico_train", "run", str(paths[0]))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return tiny(name="killed", **changes).layout, paths[1], RunLayout(tmp_path / "runs" / "whole")


def carried_through(config: Path) -> None:
    process = start("-m", "pico_train", "run", str(config))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err


@pytest.mark.slow
@pytest.mark.parametrize("points", FAULT_POINTS)
def test_kills_at_named_points_inside_saves(
    forty: tuple[RunLayout, Path, RunLayout], points: list[tuple[str, str, int]]
) -> None:
    """SIGKILL: 13 in all over the parameters, at least 4 in a row within each run."""
    layout, config, whole = forty
    for stage, part, nth in points:
        process = start("-c", KILLER, str(config), stage, part, str(nth))
        out, err = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, f"{stage} {part}: not reached\n{out}{err}"
    carried_through(config)
    assert_same_run(layout, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_kills_at_arbitrary_moments(forty: tuple[RunLayout, Path, RunLayout], seed: int) -> None:
    """SIGKILL from outside, 12 in all over the seeds, 3 in a row within each run: after the row of a drawn update has
    appeared and a drawn delay (up to a few updates' time) has passed."""
    layout, config, whole = forty
    draw = random.Random(seed)
    for low in (1, 11, 21):
        update, delay = draw.randint(low, low + 7), draw.uniform(0, 0.06)
        process = start("-m", "pico_train", "run", str(config))
        while process.poll() is None and len(read_metrics(layout.metrics)) < update:
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        out, err = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, f"ended by itself before the kill\n{out}{err}"
    carried_through(config)
    assert_same_run(layout, whole)
    sessions = json.loads(layout.manifest.read_text())["sessions"]
    assert len(sessions) == 4
