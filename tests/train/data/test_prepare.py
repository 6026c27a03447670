"""From documents to rows: nothing lost, nothing made up, the same again, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_contract.layout import DataLayout
from pico_train.data import prepare as preparing
from pico_train.data.packed import PackedData
from pico_train.data.prepare import show
from pico_train.data.tokenizer import load_tokenizer

from .conftest import Make, settings

DOCUMENTS = [f"The {noun} of {place} número {i} speaks.\n" for i in range(40) for noun, place in [("king", "Łódź")]]
HELD_OUT = [0, 5, 6, 13, 14, 16, 20, 22, 24, 27, 30, 35]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n%%\n".join(DOCUMENTS), encoding="utf-8")
    return path


@pytest.fixture
def source(text: Path) -> dict[str, str]:
    return {"path": str(text), "separator": "\n%%\n"}


def stream_of(data: PackedData, split: str = "train") -> list[int]:
    rows = data.split(split)
    return [int(i) for i in rows.take(np.arange(rows.n_rows)).ravel()]


def expected_stream(data: PackedData, documents: list[str]) -> tuple[list[int], list[int]]:
    """(ids, document offsets) of `documents`, each ended by end-of-text."""
    tokenizer = load_tokenizer(data.path)
    ids: list[int] = []
    starts = []
    for document in documents:
        starts.append(len(ids))
        ids += [*tokenizer.encode(document).ids, tokenizer.token_to_id("<|endoftext|>")]
    return ids, starts


def test_rows_are_the_documents_each_ended_by_eos(make: Make, source: dict[str, str]) -> None:
    data = make(source)
    ids, starts = expected_stream(data, DOCUMENTS)
    info = data.manifest.splits["train"]
    assert stream_of(data) == ids[: info.rows * 9]
    assert data.split("train").documents.tolist() == starts
    assert (info.tokens, info.dropped_tokens, info.documents) == (len(ids), len(ids) % 9, len(DOCUMENTS))


def test_the_text_can_be_read_back(make: Make, source: dict[str, str]) -> None:
    data = make(source, seq_len=1)
    text = load_tokenizer(data.path).decode(stream_of(data), skip_special_tokens=False)
    assert text.startswith("".join(f"{document}<|endoftext|>" for document in DOCUMENTS)[:-20])


def test_a_split_by_document_keeps_documents_whole_and_apart(make: Make, source: dict[str, str]) -> None:
    data = make(source, validation_fraction=0.3)
    tokenizer = load_tokenizer(data.path)
    found = {}
    for split in ("train", "validation"):
        texts = tokenizer.decode(stream_of(data, split), skip_special_tokens=False).split("<|endoftext|>")
        found[split] = texts[:-1] if data.manifest.splits[split].dropped_tokens else [t for t in texts if t]
        assert set(found[split]) <= set(DOCUMENTS)
    assert not set(found["train"]) & set(found["validation"])
    assert data.manifest.splits["train"].documents + data.manifest.splits["validation"].documents == len(DOCUMENTS)
    assert 4 <= data.manifest.splits["validation"].documents <= 20


def test_what_is_held_out_stays_so_when_text_is_added(
    make: Make, text: Path, source: dict[str, str], tmp_path: Path
) -> None:
    """A document is drawn by its number alone."""
    before = make(source, "before", validation_fraction=0.3)
    text.write_text(text.read_text(encoding="utf-8") + "\n%%\nAnother one.", encoding="utf-8")
    tokenizer = {"path": str(tmp_path / "before"), "vocab_size": 280}
    after = make(source, "after", validation_fraction=0.3, tokenizer=tokenizer)
    for split in ("train", "validation"):
        short, long = stream_of(before, split), stream_of(after, split)
        assert long[: len(short)] == short


def test_the_seed_chooses_what_is_held_out(make: Make, source: dict[str, str]) -> None:
    first = make(source, "a", validation_fraction=0.3)
    second = make(source, "b", validation_fraction=0.3, seed=1)
    assert stream_of(first, "validation") != stream_of(second, "validation")


def test_validation_from_a_source_of_its_own(make: Make, source: dict[str, str], tmp_path: Path) -> None:
    """`max_tokens` bounds the source, not what is held out."""
    (tmp_path / "held_out.txt").write_text("The queen rises and the war falls, but the sword weeps.")
    data = make(source, validation_source=str(tmp_path / "held_out.txt"), max_tokens=100, validation_fraction=0.5)
    ids, _ = expected_stream(data, ["The queen rises and the war falls, but the sword weeps."])
    assert stream_of(data, "validation") == ids[: len(ids) // 9 * 9]
    assert 100 <= data.manifest.splits["train"].tokens < 160


def test_max_tokens_stops_at_the_end_of_a_document(make: Make, source: dict[str, str]) -> None:
    whole, cut = make(source, "whole"), make(source, "cut", max_tokens=50)
    starts = whole.split("train").documents
    assert cut.manifest.splits["train"].tokens == starts[starts >= 50][0]


def test_long_documents_are_tokenised_as_if_whole(make: Make, tmp_path: Path) -> None:
    """Over 200,000 characters, cut for tokenising, in a lot with short ones."""
    words = [f"word{i % 97}'s" + " " * (i % 3) + "\n\n" * (i % 11 == 0) for i in range(30_000)]
    documents = [" ".join(words), "short", " ".join(reversed(words))]
    (tmp_path / "long.txt").write_text("%%".join(documents))
    data = make({"path": str(tmp_path / "long.txt"), "separator": "%%"})
    ids, starts = expected_stream(data, documents)
    assert stream_of(data) == ids[: len(ids) // 9 * 9]
    assert data.split("train").documents.tolist() == starts


def contents(data: PackedData) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in data.path.iterdir()}
    manifest = json.loads(files.pop("data.json"))
    for key in ("created", "digest"):  # of the moment, and of the text with it
        manifest.pop(key)
    return {**files, "data.json": json.dumps(manifest).encode()}


def test_equal_settings_give_equal_bytes(make: Make, source: dict[str, str]) -> None:
    first = contents(make(source, "a", validation_fraction=0.3))
    second = contents(make(source, "b", validation_fraction=0.3))
    assert len(first) == 6
    assert first == second


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_bytes_do_not_depend_on_the_process(make: Make, source: dict[str, str], tmp_path: Path, hash_seed: str) -> None:
    """Neither on the order of Python's sets nor on the number of threads that tokenise."""
    here = make(source, "here", validation_fraction=0.3)
    raw = settings(source, tmp_path / "there", {"validation_fraction": 0.3}).model_dump(mode="json")
    program = (
        "import json, sys; from pico_train.data.prepare import PrepareConfig, prepare;"
        "prepare(PrepareConfig.model_validate(json.loads(sys.argv[1])))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-c", program, json.dumps(raw)], env=environment, check=True, timeout=120)
    assert contents(PackedData.open(tmp_path / "there")) == contents(here)


def test_the_fingerprint_is_that_of_the_stream(make: Make, text: Path, source: dict[str, str], tmp_path: Path) -> None:
    first = make(source, "a").manifest.fingerprint
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    assert make({**source, "path": str(copy)}, "b").manifest.fingerprint == first
    assert make(source, "c", seq_len=4).manifest.fingerprint != first
    assert make(source, "d", validation_fraction=0.3).manifest.fingerprint != first
    copy.write_text(text.read_text(encoding="utf-8").replace("king", "kong"), encoding="utf-8")
    assert make({**source, "path": str(copy)}, "e").manifest.fingerprint != first


def test_the_fingerprint_by_its_definition(make: Make, tmp_path: Path) -> None:
    """Runs name their data by it: sha256 over the row length and, for each split, the sha256 of its stream."""
    streams = {"source": [5, 6, 7, 8] * 6, "validation_source": [1, 2, 3] * 5}
    paths = {name: tmp_path / f"{name}.jsonl" for name in streams}
    for name, path in paths.items():
        path.write_text(json.dumps({"input_ids": streams[name]}))
    data = make(paths["source"], validation_source=str(paths["validation_source"]))
    hashes = [hashlib.sha256(np.array(ids, dtype="<u2").tobytes()).hexdigest() for ids in streams.values()]
    expected = hashlib.sha256(f"8\ntrain {hashes[0]}\nvalidation {hashes[1]}".encode()).hexdigest()
    assert data.manifest.fingerprint == expected


def test_the_held_out_documents_of_a_seed_never_change(make: Make, tmp_path: Path) -> None:
    """Frozen: equal settings must give equal bytes in every later version. Document i holds the id i, nine times."""
    lines = tmp_path / "ids.jsonl"
    lines.write_text("\n".join(json.dumps({"input_ids": [i] * 9}) for i in range(40)))
    data = make(lines, validation_fraction=0.3)
    assert stream_of(data, "validation")[::9] == HELD_OUT


def test_an_interrupted_preparation_leaves_nothing_and_can_be_repeated(
    make: Make, source: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = preparing.PackedWriter.add

    def interrupted(self: Any, ids: np.ndarray) -> None:
        written(self, ids)
        if self.tokens > 100:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparing.PackedWriter, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(source)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    assert make(source).manifest.splits["train"].documents == len(DOCUMENTS)


def test_ids_keep_their_type_at_the_edge_of_sixteen_bits(make: Make, tmp_path: Path) -> None:
    lines = tmp_path / "ids.jsonl"
    for vocab_size, dtype in [(65_536, "uint16"), (65_537, "uint32")]:
        ids = [vocab_size - 1, 0, 7] * 6
        lines.write_text(json.dumps({"input_ids": ids}))
        data = make(lines, f"v{vocab_size}", tokenizer={"vocab_size": vocab_size})
        assert data.manifest.dtype == dtype
        assert stream_of(data) == ids
        assert DataLayout(data.path).rows("train").stat().st_size == 18 * (2 if dtype == "uint16" else 4)


@pytest.mark.parametrize("bad", [280, -1])
def test_a_token_id_outside_of_the_vocabulary_is_named(
    refused: Callable[..., str], make: Make, source: dict[str, str], tmp_path: Path, bad: int
) -> None:
    lines = tmp_path / "ids.jsonl"
    lines.write_text(json.dumps({"input_ids": [5, bad, 279] * 6}))
    named = f'"{lines}" holds the token id {bad}, outside a vocabulary of 280: '
    assert refused(lines) == named + "set tokenizer.vocab_size"
    tokenizer = {"path": str(make(source).path), "vocab_size": 280}
    assert refused(lines, tokenizer=tokenizer) == named + "tokenizer.path is not the tokenizer that made it"


def test_a_single_document_cannot_be_split(refused: Callable[..., str], text: Path) -> None:
    sentence = refused(text, validation_fraction=0.1)
    assert sentence.startswith(f'"{text}" is a single document, of which none can be held out: set source.separator')


@pytest.mark.parametrize("separator", ["\n%%\n", None])
def test_too_few_tokens_for_a_row(refused: Callable[..., str], text: Path, separator: str | None) -> None:
    sentence = refused({"path": str(text), "separator": separator}, seq_len=10_000)
    assert sentence.startswith(f"the train split of {text} has ")
    assert sentence.endswith("less than one row of 10001: lower seq_len or give it more text")


def test_too_little_held_out_for_a_row(refused: Callable[..., str], source: dict[str, str]) -> None:
    sentence = refused(source, validation_fraction=1e-9)
    assert "the validation split of" in sentence
    assert sentence.endswith("less than one row of 9: raise validation_fraction or change seed")


def test_a_vocabulary_too_small_for_bytes(refused: Callable[..., str], text: Path) -> None:
    assert refused(text, tokenizer={"vocab_size": 258}) == (
        "tokenizer.vocab_size is 258; a byte-level tokenizer needs 259"
    )


def test_text_among_token_ids_needs_a_tokenizer(refused: Callable[..., str], make: Make, tmp_path: Path) -> None:
    lines = tmp_path / "mixed.jsonl"
    lines.write_text('{"input_ids": [3, 4, 5, 6, 7, 8, 9, 10, 11]}\n{"text": "the king"}\n')
    assert refused(lines) == f'"{lines}" mixes text with token ids: set tokenizer.path'


@pytest.mark.parametrize("seq_len", [None, 3])
def test_show_gives_ids_and_text_of_the_rows_asked_for(make: Make, source: dict[str, str], seq_len: int | None) -> None:
    data = make(source)
    rows, tokenizer = data.split("train"), load_tokenizer(data.path)
    shown = show(data, np.array([5, 2]), seq_len)
    assert [row for row, _, _ in shown] == [5, 2]
    for row, ids, text in shown:
        assert ids == rows.take(np.array([row]))[0].tolist()[: (seq_len or 8) + 1]
        assert text == tokenizer.decode(ids, skip_special_tokens=False)
