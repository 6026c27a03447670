"""Data directories made with few words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from pico_contract.errors import UserError
from pico_train.config import validate
from pico_train.data.fetch import FetchConfig, fetch
from pico_train.data.packed import PackedData
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.data.shards import StreamConfig

from ...support import replica
from ...support.data_hub import StandIn, serving

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


@pytest.fixture(scope="session")
def replica_files() -> dict[str, bytes]:
    """File -> bytes of the replica of a streamed data set."""
    return replica.files()


@pytest.fixture
def directory(replica_files: dict[str, bytes], tmp_path: Path) -> Path:
    """The replica as a directory."""
    for name, content in replica_files.items():
        path = tmp_path / "replica" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "replica"


@pytest.fixture
def hub(replica_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The replica over HTTP in the place of the hub."""
    with serving(dict(replica_files)) as state:
        monkeypatch.setenv("HF_ENDPOINT", state.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", state.endpoint)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            state.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield state


@pytest.fixture
def fetched(tmp_path: Path, directory: Path) -> Callable[..., PackedData]:
    """`fetched(source, cache_gib=1e-3, files="*")`: a data directory of streamed rows, opened."""

    def make(source: object, out: str = "streamed", cache_gib: float = 1e-3, **changes: Any) -> PackedData:
        raw = {
            "source": str(source),
            "out": str(tmp_path / out),
            "vocab_size": replica.VOCABULARY,
            "validation": {"path": str(directory / "data" / "val-00000-of-00001.parquet")},
            **changes,
        }
        path = fetch(validate(FetchConfig, raw, "test.yaml"))
        return PackedData.open(path, StreamConfig(cache_gib=cache_gib))

    return make
