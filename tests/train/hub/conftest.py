"""A stand-in for the hub, a run that pushes to it, and one that has not been pushed."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest
from pico_contract.layout import RunLayout
from pico_train import train
from pico_train.config import validate
from pico_train.hub import push
from pico_train.run import RunConfig

from ...support.hub_server import REPO, Hub, serving

Tiny = Callable[..., RunConfig]
TOKEN = "hf_a-token-of-nobody"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, as the only hub; pauses of both sides are short."""
    with serving() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(push, "_FIRST_WAIT", 0.02)
        monkeypatch.setattr(
            huggingface_hub.utils._http, "time", types.SimpleNamespace(sleep=lambda _: None, time=time.time)
        )
        yield running


@pytest.fixture
def pushing(tiny: Tiny) -> RunConfig:
    return tiny(**{"hub.repo": REPO, "hub.wait_minutes": 0.2, "snapshot.every": 0})


@pytest.fixture(scope="module")
def finished(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """A finished run that was not pushed, for tests that push it and leave it as it is."""
    sizes = {"vocab_size": 280, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    raw = {
        "name": "tiny",
        "runs_dir": str(tmp_path_factory.mktemp("push")),
        "model": {**sizes, **heads},
        "data": {"path": str(data_dir)},
        "train": {"steps": 10, "batch_size": 8, "device": "cpu", "threads": 1},
        "checkpoint": {"every": 4},
        "snapshot": {"every": 0},
    }
    config = validate(RunConfig, raw, "test.yaml")
    train(config, quiet=True)
    return config.layout
