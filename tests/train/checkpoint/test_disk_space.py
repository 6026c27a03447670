"""Room on the disk: estimated to a few percent, asked for before the first step, and nothing lost where it runs out."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_contract.schema import CheckpointManifest, SnapshotManifest
from pico_train import train
from pico_train.log.metrics import MetricsFile, read_metrics
from pico_train.method.plain import Plain
from pico_train.model.decoder import Decoder
from pico_train.run import RunConfig, build
from pico_train.run.disk_usage import remaining
from torch import nn

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

Tiny = Callable[..., RunConfig]


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the file system say that so many bytes are free."""

    def say(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=free))

    return say


def test_a_run_that_does_not_fit_is_refused_before_its_first_step(
    tiny: Tiny, small_disk: Callable[[int], None]
) -> None:
    config = tiny()
    needed = remaining(build(config), None)
    small_disk(needed - 1)
    with pytest.raises(UserError, match=r"the rest of .*tiny takes up to 2\.\d MB, and 2\.\d MB are free .*checkpoint"):
        train(config, quiet=True)
    assert not config.layout.root.exists()
    small_disk(needed)
    assert train(config, quiet=True).status == "finished"
    small_disk(0)
    assert train(config, quiet=True).status == "finished"  # nothing is left to write


def test_a_run_that_does_not_fit_begins_where_that_is_a_warning_or_off(
    tiny: Tiny, small_disk: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    small_disk(1000)
    assert train(tiny(name="warned", **{"disk.check": "warn"})).status == "finished"
    assert "and 1.0 kB are free on its disk" in capsys.readouterr().out
    assert train(tiny(name="unasked", **{"disk.check": "off"})).status == "finished"
    assert "are free" not in capsys.readouterr().out


def full(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def assert_same_end(layout: RunLayout, other: RunLayout) -> None:
    """The weights, the state and the observations of the last step, and the rows of the metrics."""
    for name in ("model.safetensors", "state/optimizer.safetensors"):
        assert_equal(layout.checkpoint(10) / name, other.checkpoint(10) / name)
    assert codec.intact_steps(layout.snapshots, SnapshotManifest, hashes=True) == [0, 1, 2, 4, 8, 10]
    assert_equal(layout.snapshot(8) / "train.gradients.safetensors", other.snapshot(8) / "train.gradients.safetensors")
    rows = [[{**row, "tokens_per_second": 0, "mfu": 0} for row in read_metrics(one.metrics)] for one in (layout, other)]
    assert rows[0] == rows[1]


def assert_equal(one: Path, other: Path) -> None:
    found, expected = codec.read_tensors(one), codec.read_tensors(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("where", ["checkpoints", "snapshots", "evaluations", "metrics.jsonl"])
def test_a_full_disk_stops_the_run_and_loses_nothing_that_was_saved(
    tiny: Tiny, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write fails half-way: a half file is there, as it is on a disk that fills."""
    whole = tiny(name="whole")
    train(whole, quiet=True)
    config = tiny(name="tiny")
    place = f"{where}/.tmp-step_00000008" if where in ("checkpoints", "snapshots") else f"{where}/step_00000008"
    save, write, append = codec.save_tensors, Path.write_text, MetricsFile.append

    def failing_save(path: Path, tensors: object, metadata: None = None) -> None:
        if place in str(path) and "manifest" not in path.name:
            path.write_bytes(b"half")
            raise full(path)
        save(path, tensors, metadata)  # type: ignore[arg-type]

    def failing_write(path: Path, text: str, *args: object, **options: object) -> int:
        if place in str(path):
            write(path, text[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, text, *args, **options)  # type: ignore[arg-type]

    def failing_append(metrics: MetricsFile, row: dict[str, object]) -> None:
        if row["step"] == 8 and where == "metrics.jsonl":
            metrics._handle.close()
            metrics._handle = open("/dev/full", "a")  # noqa: SIM115 - closed with the file
        append(metrics, row)

    monkeypatch.setattr(codec, "save_tensors", failing_save)
    monkeypatch.setattr(Path, "write_text", failing_write)
    monkeypatch.setattr(MetricsFile, "append", failing_append)
    with pytest.raises(OSError, match=r"No space left on device \(.*B free, where the rest of the run takes up") as got:
        train(config, quiet=True)
    monkeypatch.undo()
    layout = config.layout
    assert got.value.errno == errno.ENOSPC
    assert str(got.value.filename).startswith(str(layout.root / where))
    assert ".tmp" not in str(got.value)
    manifest = json.loads(layout.manifest.read_text())
    assert (manifest["status"], manifest["message"].count("No space left")) == ("failed", 1)
    steps = codec.intact_steps(layout.checkpoints, CheckpointManifest, hashes=True)
    assert steps[-1] == manifest["step"] == (8 if where in ("snapshots", "evaluations") else 4)
    assert not list(layout.root.rglob(".tmp*"))
    assert train(config, quiet=True).status == "finished"
    assert_same_end(layout, whole.layout)


def test_weights_that_do_not_fit_into_a_snapshot_stay_in_their_checkpoint(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, save = tiny(**{"checkpoint.keep": {"last": 1}}), codec.save_tensors

    def failing_save(path: Path, tensors: object, metadata: None = None) -> None:
        if path.name == "weights.safetensors" and "step_00000004" in str(path):
            raise full(path)
        save(path, tensors, metadata)  # type: ignore[arg-type]

    monkeypatch.setattr(codec, "save_tensors", failing_save)
    with pytest.raises(OSError, match="No space left"):
        train(config, quiet=True)
    monkeypatch.undo()
    assert codec.intact_steps(config.layout.checkpoints, CheckpointManifest, hashes=True) == [0, 4, 8]
    assert train(config, quiet=True).status == "finished"
    assert codec.listed_steps(config.layout.checkpoints) == [0, 10]


class Looking(Plain):
    """Looks at values before it trains, which a model of shapes alone does not have."""

    def prepare(self, model: Decoder, data: Any, seed: int) -> dict[str, nn.Parameter]:
        self.largest = model.lm_head.weight.max().item()
        return super().prepare(model, data, seed)


class Restless(Plain):
    def rebuild_at(self, step: int) -> bool:
        return True
