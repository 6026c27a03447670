"""Data directories made with few words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_contract.errors import UserError
from pico_train.config import validate
from pico_train.data.packed import PackedData
from pico_train.data.prepare import PrepareConfig, prepare

Make = Callable[..., PackedData]


def settings(source: Any, out: Path, changes: dict[str, Any]) -> PrepareConfig:
    """Rows of 8 + 1 ids from `source` (a path, or a section), vocabulary 280, no validation split."""
    raw = {
        "source": source if isinstance(source, dict) else str(source),
        "out": str(out),
        "seq_len": 8,
        "tokenizer": {"vocab_size": 280},
        "validation_fraction": 0,
    }
    return validate(PrepareConfig, {**raw, **changes}, "test.yaml")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(source, seq_len=4, out="name")`: the prepared data, opened."""

    def prepared(source: Any, out: str = "packed", **changes: Any) -> PackedData:
        return PackedData.open(prepare(settings(source, tmp_path / out, changes)))

    return prepared


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """The sentence with which preparing is refused; nothing of it may be left behind."""

    def sentence(source: Any, **changes: Any) -> str:
        config = settings(source, tmp_path / "refused" / "packed", changes)
        with pytest.raises(UserError) as caught:
            prepare(config)
        left = config.out.parent
        assert not left.exists() or not list(left.iterdir())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return sentence
