"""An update that is not finite is never stepped, though the host learns of it later. The device is forced: a CPU's
fused AdamW leaves a step out as CUDA's does."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pico_contract import codec
from pico_train import train
from pico_train.errors import NonFiniteError
from pico_train.log.metrics import read_metrics
from pico_train.method.base import BatchSource
from pico_train.method.plain import Plain
from pico_train.model import loss as loss_module
from pico_train.optim import gradient_norm
from pico_train.run import RunConfig, build
from pico_train.trainer import nonfinite
from pico_train.trainer.update import apply_update, compute_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...support.bad_methods import BadGradient, BadLoss  # noqa: F401  # by name, of this module

Tiny = Callable[..., RunConfig]
UNSEEN = {"log.every": 10, "log.console_every": 10, "snapshot.every": 0, "evaluate.every": 0}


class Acting(Plain):
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Acts, if only by being there."""


class Counting(Plain):
    """Notes how often the host has read the device when an update begins."""

    reads = 0
    at_update: dict[int, int]

    def begin_step(self, step: int) -> BatchSource:
        self.at_update[step] = Counting.reads
        return super().begin_step(step)


class CountReads(TorchDispatchMode):
    """Counts what an accelerator would have to be waited for: values that become Python's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Counting.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> Tiny:
    """The tiny run under a method of this file."""
    monkeypatch.setitem(sys.modules, "users_finite", sys.modules[__name__])
    return lambda method, **changes: tiny(**{"method.name": f"users_finite:{method}", **changes})


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite, "_DEVICES_THAT_SKIP", ("cpu",))


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return codec.read_tensors(config.layout.checkpoint(10) / "model.safetensors")


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_reading_later_changes_no_bit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, micro_batch: int) -> None:
    changes = {"train.micro_batch_size": micro_batch, "log.every": 3}
    at_once = tiny(name="at_once", **changes)
    train(at_once, quiet=True)
    monkeypatch.setattr(nonfinite, "_DEVICES_THAT_SKIP", ("cpu",))
    later = tiny(name="later")
    train(later, quiet=True)
    rows = [
        [{**row, "tokens_per_second": 0, "mfu": 0} for row in read_metrics(c.layout.metrics)] for c in (at_once, later)
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[1]] == [3, 6, 9, 10]
    assert all(torch.equal(tensor, weights(at_once)[name]) for name, tensor in weights(later).items())


@pytest.mark.parametrize("method", ["BadLoss", "BadGradient"])
@pytest.mark.parametrize("every", [4, 0])
def test_the_update_is_named_and_nothing_later_is_saved(
    own: Tiny, monkeypatch: pytest.MonkeyPatch, method: str, every: int
) -> None:
    """The report, gradient norms at theta_5 among it, is that of a run that looks before each step."""
    said, left = [], []
    for name, devices in (("at_once", ()), ("later", ("cpu",))):
        monkeypatch.setattr(nonfinite, "_DEVICES_THAT_SKIP", devices)
        config = own(method, name=name, **UNSEEN, **{"checkpoint.every": every})
        with pytest.raises(NonFiniteError) as caught:
            train(config, quiet=True)
        said.append(str(caught.value).replace(str(config.layout.root), ""))
        left.append(json.loads((config.layout.failure(6) / "failure.json").read_text()))
        assert codec.listed_steps(config.layout.checkpoints) == ([0, 4] if every else [0])
        assert read_metrics(config.layout.metrics) == []
    assert said[0].startswith("update 6: ")
    assert said[0] == said[1]
    assert left[0] == left[1]


def test_what_follows_a_step_left_out_is_left_out(own: Tiny, holding: None) -> None:
    """Weights, moments and the moments' counters stay those of theta_5 through updates 6, which is bad, to 8."""
    job = build(own("BadLoss"))
    state = job.build_state(None)
    kept: dict[str, torch.Tensor] = {}
    for step in range(1, 9):
        update = compute_gradients(job, state, step, defer=True)
        update.norm_on_device = gradient_norm(state.parameters)
        nonfinite.skip_step_if_nonfinite(state, update, job.runtime)
        apply_update(state, update, 1.0)
        saved = state.capture().copied()
        kept = kept if step > 5 else {**saved.weights, **saved.optimizer}
    assert all(torch.equal(kept[name], tensor) for name, tensor in {**saved.weights, **saved.optimizer}.items())
    assert saved.counters["step"] == 8  # the host goes on, until it reads


def test_a_steady_update_reads_nothing(own: Tiny, holding: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first and the last update, which are logged; the loss's own look at a factor is a CPU's alone."""
    monkeypatch.setattr(loss_module, "_scaled", lambda gradient, factor: gradient * factor)
    tolist = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        Counting.reads += threading.current_thread() is threading.main_thread()  # not the writer
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    Counting.reads, Counting.at_update = 0, {}
    config = own("Counting", **UNSEEN, **{"checkpoint.every": 0, "train.micro_batch_size": 4})
    with CountReads():
        train(config, quiet=True)
    assert {Counting.at_update[step] for step in range(2, 11)} == {Counting.at_update[2]}
    assert Counting.reads >= Counting.at_update[10] + 2  # the loss and the norm of update 10
    assert len(read_metrics(config.layout.metrics)) == 1


@pytest.mark.parametrize(
    ("method", "changes", "waits"),
    [("BadLoss", {}, True), ("Acting", {}, False), ("BadLoss", {"optimizer.name": "muon"}, False)],
)
def test_who_may_learn_later(own: Tiny, holding: None, method: str, changes: dict[str, Any], waits: bool) -> None:
    state = build(own(method, **changes)).build_state(None)
    assert nonfinite.can_defer_check(state, torch.device("cpu"), 1) is waits
    assert not nonfinite.can_defer_check(state, torch.device("mps"), 1)
