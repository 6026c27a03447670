"""Sessions that write while they train: what was promised is on disk before they end, whatever fails."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_contract import codec
from pico_contract.layout import RunLayout
from pico_contract.schema import CheckpointManifest, RunManifest, SnapshotManifest
from pico_train import train
from pico_train.config import to_yaml
from pico_train.log.metrics import MetricsFile, read_metrics
from pico_train.method.base import BatchSource
from pico_train.method.plain import Plain
from pico_train.run import RunConfig

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

Tiny = Callable[..., RunConfig]
PATIENCE = 20.0
"""Seconds after which what is waited for is taken never to come."""


def tensors_below(directory: Path) -> dict[str, torch.Tensor]:
    files = sorted(directory.rglob("*.safetensors"))
    return {
        f"{path.relative_to(directory)}: {name}": tensor
        for path in files
        for name, tensor in codec.read_tensors(path).items()
    }


def assert_same_files(found: RunLayout, expected: RunLayout, step: int) -> None:
    for ours, theirs in (
        (found.checkpoint(step), expected.checkpoint(step)),
        (found.snapshot(step), expected.snapshot(step)),
    ):
        a, b = tensors_below(ours), tensors_below(theirs)
        assert a.keys() == b.keys()
        assert not [name for name in a if not torch.equal(a[name], b[name])]


def losses(layout: RunLayout) -> list[float]:
    return [row["loss"] for row in read_metrics(layout.metrics)]


class Told(Plain):
    """Sets `ahead` as update 7 begins, and then raises where it is asked to."""

    ahead = threading.Event()
    error: BaseException | None = None

    def begin_step(self, step: int) -> BatchSource:
        if step == 7:
            self.ahead.set()
            if self.error is not None:
                raise self.error
        return "language_model"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> type[Told]:
    """`Told`, importable under the name that configurations use, its event not set."""
    monkeypatch.setitem(sys.modules, "told_methods", sys.modules[__name__])
    monkeypatch.setattr(Told, "ahead", threading.Event())
    return Told


def wait_for_update_7(part: str, error: OSError | None = None) -> Callable[[str, Path], None]:
    """What delays the writing of directories with `part` in their path until update 7 has begun; then it may fail."""

    def stage(name: str, path: Path) -> None:
        if name == "temporary_created" and part in str(path):
            assert Told.ahead.wait(PATIENCE), "training did not go on"
            if error is not None:
                raise error

    return stage


@pytest.mark.parametrize("part", ["checkpoints/step_00000004", "snapshots/step_00000004"])
def test_training_goes_on_and_what_is_written_is_theta_t(
    tiny: Tiny, told: type[Told], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Bit for bit, though the weights have been updated meanwhile."""
    config = tiny(name="at-once")
    train(config, quiet=True)
    late = tiny(name="late", **{"method.name": "told_methods:Told"})
    monkeypatch.setattr(codec, "on_stage", wait_for_update_7(part))
    assert train(late, quiet=True).status == "finished"
    for step in (0, 4, 8, 10):
        assert_same_files(late.layout, config.layout, step)
    assert losses(late.layout) == losses(config.layout)


def full_at(part: str) -> Callable[[str, Path], None]:
    def stage(name: str, path: Path) -> None:
        if name == "file_written" and part in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    return stage


@pytest.mark.parametrize(
    ("part", "checkpoints", "snapshots"),
    [
        ("checkpoints/.tmp-step_00000004", [0], [0, 1, 2]),
        ("snapshots/.tmp-step_00000004", [0, 4], [0, 1, 2]),
        ("checkpoints/.tmp-step_00000010", [0, 4, 8], [0, 1, 2, 4, 8]),  # the last write of all
        ("snapshots/.tmp-step_00000010", [0, 4, 8, 10], [0, 1, 2, 4, 8]),
    ],
)
def test_a_full_disk_fails_the_session_and_the_run_goes_on_from_what_was_saved(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, part: str, checkpoints: list[int], snapshots: list[int]
) -> None:
    """No snapshot is there that leaves its weights to a checkpoint that is not."""
    whole = tiny(name="whole")
    train(whole, quiet=True)
    config = tiny(name="full")
    monkeypatch.setattr(codec, "on_stage", full_at(part))
    with pytest.raises(OSError, match="No space left") as caught:
        train(config, quiet=True)
    layout = config.layout
    assert part.replace(".tmp-", "") in str(caught.value)
    assert codec.intact_steps(layout.checkpoints, CheckpointManifest, hashes=True) == checkpoints
    assert codec.intact_steps(layout.snapshots, SnapshotManifest, hashes=True) == snapshots
    manifest = codec.read_manifest(layout.manifest, RunManifest)
    assert (manifest.status, manifest.step) == ("failed", checkpoints[-1])
    assert "No space left" in manifest.message
    assert not list(layout.root.rglob(".tmp*"))
    monkeypatch.undo()
    assert train(config, quiet=True).status == "finished"
    for step in (0, 4, 8, 10):
        assert_same_files(layout, whole.layout, step)
    assert losses(layout) == losses(whole.layout)


def test_a_writer_that_fails_while_training_fails_is_heard_too(
    tiny: Tiny, told: type[Told], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(told, "error", RuntimeError("of training itself"))
    full = OSError(errno.ENOSPC, "No space left on device", "a-file")
    monkeypatch.setattr(codec, "on_stage", wait_for_update_7("snapshots/step_00000004", full))
    config = tiny(**{"method.name": "told_methods:Told"})
    with pytest.raises(RuntimeError, match="of training itself") as caught:
        train(config)
    message = codec.read_manifest(config.layout.manifest, RunManifest).message
    for told_by in (message, capfd.readouterr().out, "".join(caught.value.__notes__)):
        assert "No space left on device: 'a-file'" in told_by
    assert message.startswith("RuntimeError: of training itself; ")


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(what, step) in the order of time: metrics made durable, checkpoints published, steps that run.json names."""
    seen: list[tuple[str, int]] = []
    sync, write_text = MetricsFile.sync, codec.write_text

    def synced(metrics: MetricsFile) -> None:
        sync(metrics)
        seen.append(("synced", len(Path(metrics._handle.name).read_text().splitlines())))

    def written(path: Path, text: str) -> None:
        if path.name == "run.json":
            seen.append(("named", json.loads(text)["step"]))
        write_text(path, text)

    def stage(name: str, path: Path) -> None:
        if name == "after_rename" and path.parent.name == "checkpoints":
            seen.append(("published", int(path.name.removeprefix("step_"))))

    monkeypatch.setattr(MetricsFile, "sync", synced)
    monkeypatch.setattr(codec, "write_text", written)
    monkeypatch.setattr(codec, "on_stage", stage)
    return seen


def test_metrics_before_the_checkpoint_and_run_json_after_it(tiny: Tiny, order: list[tuple[str, int]]) -> None:
    outcome = train(tiny(), quiet=True)
    assert (outcome.status, outcome.step) == ("finished", 10)
    assert [step for what, step in order if what == "published"] == [0, 4, 8, 10]
    for step in (4, 8, 10):
        published = order.index(("published", step))
        assert max(rows for what, rows in order[:published] if what == "synced") >= step
        assert ("named", step) not in order[:published]
    assert order[-1] == ("named", 10)


KILLER = """
import os, signal, sys, threading
from pico_contract import codec
from pico_train.method.plain import Plain
config, stage, part = sys.argv[1:4]
ahead, begin_step = threading.Event(), Plain.begin_step
def look(self, step):
    if step == 7:
        ahead.set()
    return begin_step(self, step)
def end_here(name, path):
    if name == stage and part in str(path):
        ahead.wait()
        os.kill(os.getpid(), signal.SIGKILL)
Plain.begin_step, codec.on_stage = look, end_here
sys.argv = ["pico-train", "run", config]
from pico_train.cli import main
main()
"""


@pytest.mark.slow
def test_killed_while_it_writes_what_training_has_left_behind(tiny: Tiny, tmp_path: Path) -> None:
    """SIGKILL in the thread that writes, while training is three updates ahead of it: each time nothing but the write
    is lost, and in the end the run equals an uninterrupted one."""
    whole, config = tiny(name="whole"), tiny(name="killed")
    train(whole, quiet=True)
    path = tmp_path / "killed.yaml"
    path.write_text(to_yaml(config))
    for stage, part, newest in [
        ("file_written", "checkpoints/.tmp-step_00000004", 0),
        ("before_rename", "checkpoints/step_00000004", 0),
        ("file_written", "snapshots/.tmp-step_00000004", 4),
    ]:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", KILLER, str(path), stage, part]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        assert len(read_metrics(config.layout.metrics)) >= 6
        assert codec.intact_steps(config.layout.checkpoints, CheckpointManifest, hashes=True)[-1] == newest
    assert train(config, quiet=True).status == "finished"
    for step in (0, 4, 8, 10):
        assert_same_files(config.layout, whole.layout, step)
    assert losses(config.layout) == losses(whole.layout)
