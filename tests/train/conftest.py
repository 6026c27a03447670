"""A tiny data directory and a tiny run: milliseconds a step, every part of training in use."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_contract.layout import RunLayout
from pico_train import train
from pico_train.config import validate
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.run import RunConfig

WORDS = (
    "the",
    "a",
    "king",
    "queen",
    "crown",
    "sword",
    "speaks",
    "weeps",
    "falls",
    "rises",
    "and",
    "but",
    "love",
    "war",
)


def written(path: Path, documents: int = 120) -> Path:
    """`documents` of seeded word salad, separated by empty lines."""
    draw = random.Random(7)
    text = "\n\n".join(" ".join(draw.choices(WORDS, k=draw.randint(20, 90))) + "." for _ in range(documents))
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed rows of 16 + 1 ids, vocabulary 280, with validation rows."""
    root = tmp_path_factory.mktemp("data")
    config = {
        "source": {"path": str(written(root / "words.txt")), "separator": "\n\n"},
        "out": str(root / "packed"),
        "seq_len": 16,
        "tokenizer": {"vocab_size": 280},
        "validation_fraction": 0.2,
    }
    return prepare(validate(PrepareConfig, config, "test"))


@pytest.fixture
def raw(data_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration of 10 updates as YAML would give it, to be changed and validated."""
    return {
        "name": "tiny",
        "runs_dir": str(tmp_path / "runs"),
        "model": {
            "vocab_size": 280,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32,
        },
        "data": {"path": str(data_dir)},
        "train": {"steps": 10, "batch_size": 8, "device": "cpu", "threads": 1},
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup_steps": 2},
        "snapshot": {"every": 4, "probe_rows": 6},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "perplexity": {"rows": 8}},
    }


@pytest.fixture
def tiny(raw: dict[str, Any]) -> Callable[..., RunConfig]:
    """The tiny run with dotted changes: `tiny(**{"train.steps": 5})`."""

    def make(**changes: Any) -> RunConfig:
        for key, value in changes.items():
            section, *path = key.split(".")
            if not path:
                raw[section] = value
                continue
            inner = raw.setdefault(section, {})
            for part in path[:-1]:
                inner = inner.setdefault(part, {})
            inner[path[-1]] = value
        return validate(RunConfig, raw, "test.yaml")

    return make


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """One finished run for all tests of a file; each gets a copy."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes = {"vocab_size": 280, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 32}
    raw = {
        "name": "tiny",
        "runs_dir": str(tmp_path_factory.mktemp("commands")),
        "model": {**sizes, **heads},
        "data": {"path": str(data_dir)},
        "train": {"steps": 10, "batch_size": 8, "device": "cpu"},
        "optimizer": {"lr": 0.01},
        "checkpoint": {"every": 4},
        "snapshot": {"every": 0},
        "evaluate": {"perplexity": {"rows": 8}},
    }
    config = validate(RunConfig, raw, "test.yaml")
    train(config, quiet=True)
    return config.layout


@pytest.fixture
def finished(trained: RunLayout, tmp_path: Path) -> RunLayout:
    shutil.copytree(trained.root, tmp_path / "runs" / "tiny")
    return RunLayout(tmp_path / "runs" / "tiny")
