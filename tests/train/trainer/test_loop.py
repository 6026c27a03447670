"""Gradients, stops and refusals of a session."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_contract.errors import UserError
from pico_contract.lock import LockHeldError, RunLock
from pico_train import train
from pico_train.data.packed import PackedData
from pico_train.errors import NonFiniteError
from pico_train.log.metrics import read_metrics
from pico_train.method.plain import Plain
from pico_train.run import RunConfig, build
from pico_train.trainer.loop import is_due
from pico_train.trainer.update import compute_gradients
from torch import nn

from ...support.bad_methods import BadGradient, BadLoss  # noqa: F401  # by name, of this module
from ...support.signalling_methods import Killer  # noqa: F401  # by name, of this module

Tiny = Callable[..., RunConfig]


def gradients_of(config: RunConfig) -> tuple[float, dict[str, torch.Tensor]]:
    job = build(config)
    state = job.build_state(None)
    update = compute_gradients(job, state, 1)
    return update.loss, {name: p.grad for name, p in state.parameters.items()}


@pytest.mark.parametrize("micro_batch", [4, 2, 1])
def test_gradients_do_not_depend_on_the_micro_batch(tiny: Tiny, micro_batch: int) -> None:
    """Within 1e-6 of each tensor's largest entry: only the order of float32 sums differs."""
    loss, whole = gradients_of(tiny())
    loss_parts, parts = gradients_of(tiny(**{"train.micro_batch_size": micro_batch}))
    assert loss_parts == pytest.approx(loss, rel=1e-6)
    for name, gradient in whole.items():
        assert (parts[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max(), name


def test_gradients_equal_autograd_of_the_mean_loss(tiny: Tiny) -> None:
    """Against torch's own cross entropy over all logits, on the rows of update 1."""
    config = tiny(**{"train.micro_batch_size": 2})
    _, found = gradients_of(config)
    job = build(config)
    model = job.build_state(None).model
    tokens = job.loader.tokens(job.loader.order.rows(1))
    logits = model(tokens[:, :-1])
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert (found[name] - parameter.grad).abs().max() <= 2e-6 * parameter.grad.abs().max(), name


class Uneven(Plain):
    """Terms differ between micro-batches: labels below a bound are left out."""

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        labels = batch[:, 1:].clone()
        labels[batch[:, 1:] % 3 == 0] = -100
        terms = int((labels != -100).sum())
        return model(batch[:, :-1], labels=labels), terms, {"third": float((labels == -100).float().mean())}


def test_unequal_micro_batches_are_weighed_by_their_terms(tiny: Tiny, users_methods: None) -> None:
    """The mean of micro-batch means would be another objective (transformers#34191)."""
    config = tiny(**{"method.name": "users_methods:Uneven"})
    loss, whole = gradients_of(config)
    loss_parts, parts = gradients_of(tiny(**{"train.micro_batch_size": 1}))
    assert loss_parts == pytest.approx(loss, rel=1e-6)
    for name, gradient in whole.items():
        assert (parts[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max(), name


class BadWeight(Plain):
    """A weight goes bad after update 5, as a faulty device would leave it."""

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step == 5:
            with torch.no_grad():
                model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")


@pytest.fixture
def users_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file, importable under the name that the configurations use."""
    import sys

    monkeypatch.setitem(sys.modules, "users_methods", sys.modules[__name__])


@pytest.mark.parametrize(
    ("method", "what", "culprit"),
    [
        ("BadLoss", "the loss", "the gradient of model.embed_tokens.weight"),
        ("BadGradient", "the gradient", "the gradient of model.norm.weight"),
        ("BadWeight", "the loss", "parameter model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_a_non_finite_update_is_never_stepped(
    tiny: Tiny, users_methods: None, method: str, what: str, culprit: str
) -> None:
    config = tiny(**{"method.name": f"users_methods:{method}"})
    with pytest.raises(NonFiniteError) as caught:
        train(config, quiet=True)
    sentence = str(caught.value)
    assert sentence.startswith(f"update 6: {what} is not finite (first at {culprit})")
    assert "The newest intact checkpoint is step 4" in sentence
    left = json.loads((config.layout.failure(6) / "failure.json").read_text())
    assert left["first_non_finite"] == culprit
    assert left["gradient_norms"]
    assert (config.layout.failure(6) / "batch.safetensors").is_file()
    assert [row["step"] for row in read_metrics(config.layout.metrics)] == [1, 2, 3, 4, 5]
    assert json.loads(config.layout.manifest.read_text())["status"] == "failed"


def test_identity_changes_are_refused_by_name_and_operation_changes_are_recorded(tiny: Tiny) -> None:
    config = tiny()
    train(config, quiet=True)
    with pytest.raises(UserError) as caught:
        train(tiny(**{"optimizer.lr": 0.02, "seed.init": 1}), quiet=True)
    assert "optimizer.lr (0.01 -> 0.02)" in str(caught.value)
    assert "seed.init (0 -> 1)" in str(caught.value)
    assert "choose another name" in str(caught.value)


def test_operation_fields_change_freely_and_are_recorded(tiny: Tiny, users_methods: None) -> None:
    changes = {"method.name": "users_methods:Killer"}
    assert train(tiny(**changes), quiet=True).status == "stopped"
    config = tiny(**{"train.micro_batch_size": 2, "log.every": 2})
    assert train(config, quiet=True).status == "finished"
    first, second = json.loads(config.layout.manifest.read_text())["sessions"]
    assert (first["micro_batch"], second["micro_batch"]) == (8, 2)
    assert (first["from_step"], second["from_step"]) == (0, 5)


def test_other_data_under_an_old_name_is_refused(tiny: Tiny, data_dir: Path, tmp_path: Path) -> None:
    import shutil

    train(tiny(), quiet=True)
    moved = tmp_path / "moved"
    shutil.copytree(data_dir, moved)
    assert train(tiny(**{"data.path": str(moved)}), quiet=True).status == "finished"  # data may move
    description = json.loads((moved / "data.json").read_text())
    description["fingerprint"] = "0" * len(description["fingerprint"])
    (moved / "data.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="the data's fingerprint"):
        train(tiny(**{"data.path": str(moved)}), quiet=True)


def test_a_live_lock_is_respected_and_its_holder_named(tiny: Tiny) -> None:
    config = tiny()
    with RunLock(config.layout.lock), pytest.raises(LockHeldError, match=f"process {os.getpid()} on "):
        train(config, quiet=True)


def test_a_lost_lock_ends_the_session_without_touching_the_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    beat = RunLock.beat

    def taken(lock: RunLock, every: float = 30.0) -> bool:
        if (config.layout.checkpoint(4) / "manifest.json").is_file():
            lock.path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "another"}))
            return beat(lock, every=0.0)
        return False

    monkeypatch.setattr(RunLock, "beat", taken)
    with pytest.raises(LockHeldError, match="taken over by process 1 on elsewhere"):
        train(config, quiet=True)
    assert json.loads(config.layout.manifest.read_text())["status"] == "running"
    assert json.loads(config.layout.lock.read_text())["host"] == "elsewhere"


def test_a_full_disk_fails_with_what_was_saved_in_place(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from pico_contract import codec

    config = tiny()
    save = codec.save_tensors

    def full(path: Path, *args: object, **options: object) -> None:
        if "step_00000008" in str(path):
            raise OSError(28, "No space left on device", str(path))
        save(path, *args, **options)

    monkeypatch.setattr(codec, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        train(config, quiet=True)
    assert codec.listed_steps(config.layout.checkpoints) == [0, 4]
    assert not [p for p in config.layout.checkpoints.iterdir() if p.name.startswith(".")]
    monkeypatch.undo()
    assert train(config, quiet=True).status == "finished"


def test_cadence() -> None:
    assert [step for step in range(10) if is_due(4, step)] == [0, 4, 8]
    assert [step for step in range(10) if is_due(0, step)] == [0]


def test_rows_are_those_that_data_show_names(tiny: Tiny, data_dir: Path) -> None:
    job = build(tiny())
    row_ids = job.loader.order.rows(3)
    assert (PackedData.open(data_dir).split("train").take(row_ids) == job.loader.tokens(row_ids).numpy()).all()
