"""Processes that share parameters, gradients and optimizer state give the run of one, on CPU with gloo."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_contract.schema import CheckpointManifest, RunManifest
from pico_train import train
from pico_train.log.metrics import read_metrics
from pico_train.method.base import Method
from pico_train.method.plain import Plain
from pico_train.optim import OptimizerConfig
from pico_train.run import RunConfig, build
from pico_train.run.build import require_shardable

from ..support.launching import Launch, launcher

Tiny = Callable[..., RunConfig]

METHOD = '''
import os
import signal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pico_train.method.plain import Plain


class Sharded(Plain):
    """Writes down what it finds sharded after update 2; does what TOLD says in update 5 of process 1."""

    def begin_step(self, step):
        if (os.environ.get("RANK", "0"), step) == ("1", 5):
            if os.environ.get("TOLD") == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            if os.environ.get("TOLD") == "fail":
                raise RuntimeError("the first error of all")
        return super().begin_step(step)

    def loss(self, model, batch, step):
        loss, terms, scalars = super().loss(model, batch, step)
        return loss * (float("nan") if os.environ.get("TOLD") == "nan" and step == 3 else 1.0), terms, scalars

    def after_step(self, model, optimizer, step):
        if step == 2 and "RANK" in os.environ:
            state = [entry for p in model.parameters() for entry in optimizer.state[p].values() if entry.dim()]
            tensors = [*model.parameters(), *state]
            assert len(state) == 2 * len(list(model.parameters()))
            assert all(isinstance(tensor, DTensor) for tensor in tensors)
            assert all(tensor.to_local().numel() < tensor.numel() for tensor in tensors)
            with open(f"sharded.{os.environ['RANK']}", "w") as file:
                file.write(str(len(tensors)))


class Headed(Plain):
    def prepare(self, model, data, seed):
        self.head = nn.Parameter(torch.zeros(3))
        return {**super().prepare(model, data, seed), "head": self.head}
'''


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Run the command in so many processes, as torchrun starts them."""
    (tmp_path / "sharded.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    return launcher(tmp_path)


def tensors_of(directory: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    for path in sorted(directory.rglob("*.safetensors")):
        yield str(path.relative_to(directory)), codec.read_tensors(path)


def assert_close_directories(found: Path, expected: Path, share: float) -> None:
    """The same files, names, shapes and dtypes; values within `share` of a tensor's largest entry."""
    ours, theirs = dict(tensors_of(found)), dict(tensors_of(expected))
    assert list(ours) == list(theirs)
    for file, tensors in theirs.items():
        assert list(ours[file]) == list(tensors)
        for name, tensor in tensors.items():
            other = ours[file][name]
            assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype), f"{file}: {name}"
            torch.testing.assert_close(
                other.double(), tensor.double(), rtol=0.0, atol=share * float(tensor.double().abs().max()), msg=name
            )


def assert_the_same_run(found: RunLayout, expected: RunLayout) -> None:
    """Rows equal; losses and gradients up to the order of sums, which Adam carries into weights.

    It divides by the gradient's own size, so that an entry whose gradient is next to nothing takes a step of its
    rounding. The largest differences seen, of two kinds of processor, are 1.5e-4 of the largest entry, hence 3e-4.
    """
    for row, other in zip(read_metrics(found.metrics), read_metrics(expected.metrics), strict=True):
        assert (row["step"], row["tokens"], row["order_hash"]) == (other["step"], other["tokens"], other["order_hash"])
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5 if row["step"] == 1 else 1e-3)
    for step in codec.listed_steps(expected.snapshots):
        assert_close_directories(found.snapshot(step), expected.snapshot(step), 1e-6 if step == 0 else 3e-4)
    for step in codec.intact_steps(expected.checkpoints, CheckpointManifest, hashes=True):
        assert_close_directories(found.checkpoint(step), expected.checkpoint(step), 3e-4)


@pytest.mark.slow
def test_two_that_share_give_the_run_of_one(tiny: Tiny, launch: Launch, tmp_path: Path) -> None:
    """Tied embeddings, three layers, and 281 rows of the vocabulary, which two do not divide; every update clipped."""
    changes = {"model.tie_word_embeddings": True, "model.vocab_size": 281, "model.num_hidden_layers": 3}
    changes |= {"optimizer.grad_clip": 0.05, "method.name": "sharded:Sharded"}
    two = tiny(name="two", **changes, **{"train.micro_batch": 2, "train.sharding": "full"})
    done = launch(two, 2)
    assert done.returncode == 0, done.stderr
    one = tiny(name="one", **{"train.micro_batch": None, "train.sharding": "none"})
    train(one, quiet=True)
    assert_the_same_run(two.layout, one.layout)
    assert min(row["grad_norm"] for row in read_metrics(one.layout.metrics)) > 0.05
    assert {(tmp_path / f"sharded.{rank}").read_text() for rank in (0, 1)} == {str(3 * (2 + 9 * 3))}
    session = codec.read_manifest(two.layout.manifest, RunManifest).sessions[0]
    assert (session["processes"], session["sharding"]) == (2, "full")


@pytest.mark.slow
def test_a_run_goes_from_one_to_two_that_share_to_one(tiny: Tiny, launch: Launch) -> None:
    config = tiny(name="parts", **{"method.name": "sharded:Sharded"})
    whole = config.model_copy(update={"name": "whole"})
    train(whole, quiet=True)
    cut = config.model_copy(update={"train": config.train.model_copy(update={"hours": 1e-9, "margin_minutes": 0.0})})
    assert train(cut, quiet=True).status == "stopped"
    stopped = launch(config, 2, "train.sharding=full", told="stop")
    assert "stopped at step 5" in stopped.stdout, stopped.stderr
    assert train(config, quiet=True).status == "finished"
    sessions = codec.read_manifest(config.layout.manifest, RunManifest).sessions
    assert [session["sharding"] for session in sessions] == ["none", "full", "none"]
    assert sessions[2]["from_step"] == 5
    assert_the_same_run(config.layout, whole.layout)


@pytest.mark.slow
def test_failures_of_those_that_share(tiny: Tiny, launch: Launch) -> None:
    """One that fails ends all with its error; a loss that is not finite leaves its report; a method's own parameter."""
    full = {"method.name": "sharded:Sharded", "train.sharding": "full"}
    failed = launch(tiny(name="failing", **full), 2, told="fail")
    assert failed.returncode != 0
    assert "RuntimeError: the first error of all" in failed.stderr
    assert failed.stderr.count("Traceback") <= 2, failed.stderr  # of the process that failed, and of torchrun
    config = tiny(name="nan", **full)
    assert "update 3: the loss is not finite" in launch(config, 2, told="nan").stderr
    left = json.loads((config.layout.failure(3) / "failure.json").read_text())
    assert left["step"] == 3
    assert all(math.isnan(float(norm)) for norm in left["gradient_norms"].values())
    refused = launch(tiny(name="headed", **{**full, "method.name": "sharded:Headed"}), 2)
    assert 'train.sharding is full, but "head" is the method\'s own' in refused.stderr
    assert refused.stderr.count("Traceback") == 1  # torchrun's own
    assert "exitcode  : 2" in refused.stderr


def test_one_process_has_nobody_to_share_with(tiny: Tiny) -> None:
    config = tiny(**{"train.sharding": "full"})
    with pytest.raises(UserError, match=r"train\.sharding is full, but this is the only process"):
        train(config, quiet=True)
    assert not config.layout.root.exists()
    assert build(config).sharded  # what can be checked beforehand is accepted in one process


class Unknown(Method):
    """Promises nothing."""


def test_what_cannot_be_sharded_is_refused() -> None:
    adamw, muon = OptimizerConfig(), OptimizerConfig(name="muon")
    require_shardable("none", Unknown(Method.Config()), "unknown", muon, "auto")
    require_shardable("full", Plain(Plain.Config()), "plain", adamw, 4)
    with pytest.raises(UserError, match='which the method "unknown" does not support'):
        require_shardable("full", Unknown(Method.Config()), "unknown", adamw, 4)
    with pytest.raises(UserError, match=r'which optimizer\.name "muon" does not support; adamw does'):
        require_shardable("full", Plain(Plain.Config()), "plain", muon, 4)
    with pytest.raises(UserError, match=r"train\.micro_batch cannot be auto: set it to a number"):
        require_shardable("full", Plain(Plain.Config()), "plain", adamw, "auto")
