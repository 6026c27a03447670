"""One update: its learning rate, its clipping, its scalars, and what happens around it at which step."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import MANIFEST, OPTIMIZER
from pico_contract.lock import RunLock
from pico_contract.schema import CheckpointManifest, SnapshotManifest
from pico_train import train
from pico_train.log.metrics import read_metrics
from pico_train.method.base import BatchSource
from pico_train.method.plain import Plain
from pico_train.run import RunConfig, build
from pico_train.trainer.update import compute_gradients
from torch import nn

Tiny = Callable[..., RunConfig]


class Counted(Plain):
    """Rows have labels left out, so that micro-batches differ in their terms; the mean loss is told as a scalar."""

    objective = "the mean loss over two labels in three"
    dropout = True

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        labels = batch[:, 1:].clone()
        labels[labels % 3 == 0] = -100
        total, terms = model(batch[:, :-1], labels=labels), int((labels != -100).sum())
        return total, terms, {"mean": float(total.detach()) / terms}


class Telling(Plain):
    """Logs one scalar."""

    scalar = ("share", math.nan)

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        total, terms, _ = super().loss(model, batch, step)
        return total, terms, dict([self.scalar])


class TellingLoss(Telling):
    scalar = ("loss", 0.0)


class LateSignal(Plain):
    """Asked to stop during the last update of ten."""

    at = (10,)

    def begin_step(self, step: int) -> BatchSource:
        if step in self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().begin_step(step)


class TwoSignals(LateSignal):
    at = (3, 6)


class Listener(Plain):
    """Notes the heartbeat that a reader of the run would see at each update."""

    manifest: Path
    heard: list[str]

    def begin_step(self, step: int) -> BatchSource:
        self.heard.append(json.loads(self.manifest.read_text())["heartbeat"])
        return super().begin_step(step)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> Tiny:
    """The tiny run under a method of this file."""
    monkeypatch.setitem(sys.modules, "users_update", sys.modules[__name__])
    return lambda method, **changes: tiny(**{"method.name": f"users_update:{method}", **changes})


def test_every_update_uses_its_own_learning_rate(tiny: Tiny) -> None:
    """Peak 0.01 after two updates of warm-up, then evenly to 0 at update 11."""
    config = tiny(**{"snapshot.every": 0, "evaluate.every": 0})
    train(config, quiet=True)
    found = [row["lr"] for row in read_metrics(config.layout.metrics)]
    assert found == pytest.approx([0.005] + [0.01 * k / 9 for k in range(9, 0, -1)])


@pytest.mark.parametrize(("limit", "clipped"), [(1e-3, True), (1e3, False), (None, False)])
def test_the_optimizer_is_given_the_clipped_gradient(tiny: Tiny, limit: float | None, clipped: bool) -> None:
    """After one update the first moment is (1 - beta_1) of it."""
    config = tiny(**{"train.steps": 1, "schedule.warmup_steps": 0, "optimizer.grad_clip": limit})
    train(config, quiet=True)
    state = codec.read_tensors(config.layout.state(1) / OPTIMIZER)
    moments = torch.cat([tensor.flatten() for name, tensor in state.items() if name.endswith(".exp_avg")])
    (row,) = read_metrics(config.layout.metrics)
    assert moments.norm().item() == pytest.approx(0.1 * (limit if clipped else row["grad_norm"]), rel=1e-4)


def test_scalars_are_means_over_terms(own: Tiny) -> None:
    config = own("Counted", **{"train.micro_batch_size": 1})
    job = build(config)
    state = job.build_state(None)
    update = compute_gradients(job, state, 1)
    assert update.scalars["mean"] == pytest.approx(update.loss, rel=1e-6)


def test_a_scalar_that_is_no_number_is_null(own: Tiny) -> None:
    config = own("Telling")
    assert train(config, quiet=True).status == "finished"
    assert {row["share"] for row in read_metrics(config.layout.metrics)} == {None}


def test_a_scalar_cannot_take_the_place_of_a_loss(own: Tiny) -> None:
    with pytest.raises(UserError, match='the method logs a scalar "loss"'):
        train(own("TellingLoss"), quiet=True)


def test_a_snapshot_says_what_its_train_gradients_are_of(own: Tiny) -> None:
    config = own("Counted")
    train(config, quiet=True)
    manifest = codec.read_manifest(config.layout.snapshot(4) / MANIFEST, SnapshotManifest)
    said = {(s.split, s.kind): (s.objective, s.dropout) for s in manifest.observed}
    assert said["train", "gradients"] == (Counted.objective, True)
    assert said["val", "gradients"] == ("mean next-token negative log-likelihood over the probe, nats", False)


def test_the_last_update_is_always_logged(tiny: Tiny) -> None:
    config = tiny(**{"log.every": 4})
    train(config, quiet=True)
    assert [row["step"] for row in read_metrics(config.layout.metrics)] == [4, 8, 10]


def test_a_beat_of_the_lock_is_a_heartbeat_in_the_manifest(own: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that says "running" and whose heartbeat is old has died."""
    seconds = itertools.count()
    monkeypatch.setattr(codec, "utc_now", lambda: f"second {next(seconds)}")
    monkeypatch.setattr(RunLock, "beat", lambda lock: True)
    config = own("Listener", **{"checkpoint.every": 0, "snapshot.every": 0, "evaluate.every": 0})
    Listener.manifest, Listener.heard = config.layout.manifest, []
    train(config, quiet=True)
    assert len(set(Listener.heard)) == 10


def test_a_checkpoint_says_how_many_tokens_were_consumed(tiny: Tiny) -> None:
    config = tiny()
    train(config, quiet=True)
    said = [
        codec.read_manifest(config.layout.checkpoint(step) / MANIFEST, CheckpointManifest).tokens for step in (0, 4, 10)
    ]
    assert said == [0, 4 * 8 * 16, 10 * 8 * 16]


def test_evaluations_are_due_every_so_many_updates_and_at_the_end(tiny: Tiny) -> None:
    config = tiny()
    train(config, quiet=True)
    assert codec.listed_steps(config.layout.evaluations) == [4, 8, 10]


def test_a_stop_asked_during_the_last_update_finishes_the_run(own: Tiny) -> None:
    config = own("LateSignal")
    assert train(config, quiet=True).status == "finished"


def test_conditions_are_compared_with_those_of_the_session_before(own: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    said = []
    for micro_batch in (8, 2, 2):
        train(own("TwoSignals", **{"train.micro_batch_size": micro_batch}))
        said.append("not bit-identical" in capfd.readouterr().out)
    assert said == [False, True, False]


def test_threads_are_set_for_a_session_alone(tiny: Tiny) -> None:
    before = torch.get_num_threads()
    config = tiny(**{"train.threads": before + 1, "train.steps": 2, "snapshot.every": 0})
    train(config, quiet=True)
    assert torch.get_num_threads() == before
    assert json.loads(config.layout.manifest.read_text())["sessions"][0]["threads"] == before + 1
