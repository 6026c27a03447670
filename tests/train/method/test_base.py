"""The seam is wide enough: a method with a head of its own, rows of its own, a rebuild and a resume."""

from __future__ import annotations

import gc
import os
import signal
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import METHOD_TENSORS
from pico_train import train
from pico_train.config import Section
from pico_train.log.metrics import read_metrics
from pico_train.method.base import BatchSource, Method
from pico_train.model.decoder import Decoder
from pico_train.run import RunConfig, build
from pico_train.seeds import generator
from torch import nn

Tiny = Callable[..., RunConfig]


class Toy(Method):
    """Odd updates: next token. Even ones: a head tells the first id's parity from the last hidden state of own rows.
    From update 5 on the embedding is frozen, a declared rebuild."""

    class Config(Section):
        rows: int = 4
        stop_at: int = 0

    def prepare(self, model: Decoder, data: Any, seed: int) -> dict[str, nn.Parameter]:
        self.seed, self.head = seed, nn.Parameter(getattr(self, "saved", torch.zeros(2, model.config.hidden_size)))
        named = {**dict(model.named_parameters()), "head": self.head}
        return {n: p for n, p in named.items() if not (getattr(self, "frozen", False) and "embed" in n)}

    def begin_step(self, step: int) -> BatchSource:
        if step == self.config.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if step % 2:
            return "language_model"
        return torch.randint(3, 280, (self.config.rows, 9), generator=generator(self.seed, "toy", step))

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        if step % 2:
            return model(batch[:, :-1], labels=batch[:, 1:]), batch[:, 1:].numel(), {}
        scores = model.hidden_states(batch)[:, -1] @ self.head.T
        loss = nn.functional.cross_entropy(scores, batch[:, 0] % 2, reduction="sum")
        return loss, len(batch), {"accuracy": float((scores.argmax(1) == batch[:, 0] % 2).float().mean())}

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {"head": self.head.detach()}, {"frozen": {5: getattr(self, "frozen", False)}}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> None:
        # Keys are text, as JSON has them, after a rebuild as after a resume.
        self.saved, self.frozen = tensors["head"].clone(), scalars["frozen"]["5"]

    def rebuild_at(self, step: int) -> bool:
        self.frozen = getattr(self, "frozen", False) or step == 5
        return step == 5

    def extra_tensors(self, model: Decoder) -> dict[str, torch.Tensor]:
        return {"head": self.head}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> Callable[..., RunConfig]:
    monkeypatch.setitem(sys.modules, "users_toy", sys.modules[__name__])
    return lambda **changes: tiny(**{"method.name": "users_toy:Toy", "checkpoint.every": 0, **changes})


def truth(config: RunConfig) -> list[dict[str, Any]]:
    return [{**row, "tokens_per_second": 0, "mfu": 0} for row in read_metrics(config.layout.metrics)]


def test_own_rows_do_not_advance_the_language_model_order(toy: Tiny) -> None:
    config = toy(**{"train.micro_batch_size": 2})
    train(config, quiet=True)
    rows, job = truth(config), build(config)
    assert [row["tokens"] - before for row, before in zip(rows[:4], [0, 128, 132, 260], strict=True)] == [128, 4] * 2
    assert "accuracy" in rows[1]
    assert "accuracy" not in rows[0]
    assert rows[0]["order_hash"] == rows[1]["order_hash"] != rows[2]["order_hash"]
    batch = codec.read_tensors(config.layout.snapshot(2) / "train.batch.safetensors")  # of update 3, the second read
    assert batch["rows"].tolist() == job.loader.order.rows(2).tolist()


def test_a_rebuild_changes_what_trains_and_keeps_the_rest(toy: Tiny) -> None:
    config = toy(**{"checkpoint.every": 1, "snapshot.modules": ["model.embed_tokens", "*.q_proj"]})
    train(config, quiet=True)
    embedding = [
        codec.read_tensors(config.layout.checkpoint(step) / "model.safetensors")["model.embed_tokens.weight"]
        for step in (4, 5, 6, 10)
    ]
    assert not torch.equal(embedding[0], embedding[1])
    assert torch.equal(embedding[1], embedding[2])
    assert torch.equal(embedding[1], embedding[3])
    optimizer = codec.read_tensors(config.layout.state(6) / "optimizer.safetensors")
    assert optimizer["model.norm.weight.step"] == 6
    assert not [name for name in optimizer if "embed" in name]
    head = codec.read_tensors(config.layout.state(6) / METHOD_TENSORS)["head"]
    assert head.abs().max() > 0
    observed = codec.read_tensors(config.layout.snapshot(10) / "weights.safetensors")
    assert set(observed) == {"head"}  # the checkpoint of the step holds the rest


@pytest.mark.parametrize("stop_at", [3, 5, 6, 8])
def test_a_resume_is_bit_identical_before_at_and_after_the_rebuild(toy: Tiny, stop_at: int) -> None:
    whole = toy(name="whole")
    train(whole, quiet=True)
    parts = toy(name="parts", **{"method.options": {"stop_at": stop_at}})
    assert train(parts, quiet=True).status == "stopped"
    assert train(parts, quiet=True).status == "finished"
    assert truth(whole) == truth(parts)
    for name in ("model.safetensors", "state/optimizer.safetensors", f"state/{METHOD_TENSORS}"):
        a, b = (codec.read_tensors(config.layout.checkpoint(10) / name) for config in (whole, parts))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_a_rebuild_lets_the_old_model_go(toy: Tiny) -> None:
    """Adaptive ranks rebuild again and again: one model more in memory each time would end the run."""
    job = build(toy())
    state = job.build_state(None)
    old = weakref.ref(state.model)
    state = job.build_state(state.capture())
    gc.collect()
    assert old() is None


def test_options_of_a_method_are_strict(toy: Tiny) -> None:
    with pytest.raises(UserError, match=r'unknown key "method.options.rovs".*"rows"'):
        train(toy(**{"method.options": {"rovs": 3}}), quiet=True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("plane", r'method.name is "plane", which is not a method.*"plain"'),
        ("nowhere_at_all:Method", r'method.name is "nowhere_at_all:Method", which cannot be imported'),
        ("users_toy:Missing", r"which cannot be imported"),
        ("users_toy:truth", r"is not a Method"),
    ],
)
def test_a_method_that_is_none_is_refused(toy: Tiny, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(toy(**{"method.name": name}), quiet=True)
