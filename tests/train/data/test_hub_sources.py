"""Data sets of the hub, read through `datasets` from local copies of their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pico_contract.errors import UserError
from pico_train.data.sources import SourceConfig, documents

from .conftest import Make


def read(name: Path | str, **changes: Any) -> list[Any]:
    found = documents(SourceConfig(path=f"hub:{name}", **changes))
    return [d if isinstance(d, str) else d.tolist() for d in found]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def replica(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Shards of pre-tokenised rows, one id longer than the model reads, as pico-lm/pretokenized-dolma has them."""
    rows = np.random.default_rng(3).integers(0, 50_280, (30, 65), dtype=np.int32)
    folder = tmp_path / "pretokenized" / "data"
    folder.mkdir(parents=True)
    for shard in range(3):
        ids = pa.array(rows[shard * 10 : shard * 10 + 10].tolist(), type=pa.list_(pa.int32()))
        pq.write_table(pa.table({"input_ids": ids}), folder / f"train-{shard:05d}-of-00003.parquet")
    return folder.parent, rows


def test_rows_of_a_tokenised_data_set_stay_as_they_are(make: Make, replica: tuple[Path, np.ndarray]) -> None:
    path, rows = replica
    data = make(f"hub:{path}", seq_len=64, tokenizer={"vocab_size": 50_304})
    assert data.split("train").take(np.arange(30)).tolist() == rows.tolist()
    assert data.split("train").documents.tolist() == list(range(0, 30 * 65, 65))
    assert (data.manifest.vocab_size, data.manifest.dtype) == (50_304, "uint16")
    assert data.manifest.special_tokens == {}
    assert data.tokenizer_path is None


def test_held_out_rows_of_a_tokenised_data_set_stay_as_they_are(make: Make, replica: tuple[Path, np.ndarray]) -> None:
    path, rows = replica
    data = make(f"hub:{path}", seq_len=64, tokenizer={"vocab_size": 50_304}, validation_fraction=0.2)
    found = [data.split(s).take(np.arange(data.split(s).n_rows)).tolist() for s in ("train", "validation")]
    assert len(found[1]) > 0
    assert sorted(found[0] + found[1]) == sorted(rows.tolist())


def test_other_row_lengths_cut_the_same_stream_anew(make: Make, replica: tuple[Path, np.ndarray]) -> None:
    path, rows = replica
    data = make(f"hub:{path}", seq_len=24, tokenizer={"vocab_size": 50_304})
    assert data.split("train").take(np.arange(78)).ravel().tolist() == rows.ravel().tolist()


def test_a_data_set_of_text_with_splits(tmp_path: Path) -> None:
    for split, texts in {"train": ["one", "two"], "test": ["three"]}.items():
        lines = "\n".join(json.dumps({"text": text, "id": i}) for i, text in enumerate(texts))
        (tmp_path / f"{split}.jsonl").write_text(lines)
    assert read(tmp_path) == ["one", "two"]
    assert read(tmp_path, split="test") == ["three"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"split": "dev"}, "cannot be opened: Bad split: dev."),
        ({"subset": "en"}, "cannot be opened: BuilderConfig 'en' not found."),
        ({"field": "txt"}, 'record 1 has no field "txt"; did you mean "text"?'),
    ],
)
def test_what_a_data_set_does_not_have_is_named(tmp_path: Path, changes: dict[str, str], sentence: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(UserError) as caught:
        read(tmp_path, **changes)
    assert str(tmp_path) in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["no-one/does-not-exist", "/no/such/folder"])
def test_a_data_set_that_cannot_be_had_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError) as caught:
        read(name)
    assert str(caught.value).startswith(f'the hub data set "{name}" cannot be opened: Couldn\'t ')
    assert "\n" not in str(caught.value)


def test_a_data_set_with_a_script_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("raise RuntimeError('never run')")
    with pytest.raises(UserError, match="cannot be opened: Dataset scripts are no longer supported"):
        read(tmp_path / "old")


def test_a_damaged_file_in_the_middle_is_named_with_the_last_good_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": \n')
    with pytest.raises(UserError, match=r"cannot be read after record 2: JSON parse error"):
        read(tmp_path)


def test_a_network_failure_in_the_middle_is_a_failure_and_no_mistake(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1 rather than 2; no half data directory, and the same command again succeeds."""

    def broken() -> Iterator[dict[str, str]]:
        yield from ({"text": f"the king speaks {i} times"} for i in range(40))
        raise ConnectionError("Server Disconnected")

    def whole() -> Iterator[dict[str, str]]:
        yield from ({"text": f"the king speaks {i} times"} for i in range(80))

    def serve(stream: Callable[[], Iterator[dict[str, str]]]) -> None:
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream())

    serve(broken)
    with pytest.raises(
        ConnectionError, match='the hub data set "a/b" broke off after record 40: Server Disconnected'
    ) as caught:
        make("hub:a/b")
    assert not isinstance(caught.value, UserError)
    assert list(tmp_path.iterdir()) == []
    serve(whole)
    assert make("hub:a/b").manifest.splits["train"].documents == 80
