"""The commands that look at a data directory: describe it, and verify its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pico_contract.data_directory import verify_data
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import DataLayout
from pico_contract.schema import SourceFile

from pico_train.checkpoint.disk_space import in_units
from pico_train.data.packed import PackedData
from pico_train.data.prepare import show
from pico_train.data.shards import StreamedRows
from pico_train.data.tokenizer import load_tokenizer, vocabulary_size


def is_data_directory(path: Path) -> bool:
    """Whether `path` is a data directory, by its data.json."""
    return DataLayout(path).manifest.is_file()


def describe_data(path: Path, overrides: Sequence[str], rows: int) -> Iterator[str]:
    """Describe the data directory `path`, and show the first `rows` rows of its training split.

    Raises:
        UserError: `overrides` are given; a data directory takes none.
        DamagedError: a file is damaged.
    """
    if overrides:
        raise UserError(
            f"{path} is a data directory, which takes no overrides: leave out {overrides[0]}"
        )
    data = PackedData.open(path)
    manifest = data.manifest
    special = ", ".join(f"{role} {token}" for role, token in manifest.special_tokens.items())
    yield f"{path}: data of {manifest.source} (licence: {manifest.licence}), made {manifest.created}"
    yield f"fingerprint   {manifest.fingerprint}"
    yield f"vocabulary    {manifest.vocab_size:,} ids, stored as {manifest.dtype}; special tokens: {special or 'none'}"
    yield f"tokenizer     {data.tokenizer_path or 'none'}"
    yield from _split_lines(data)
    yield from _source_lines(manifest.source_files or ())
    yield f"verify with   pico-train data verify {path}"
    shown = min(rows, data.split("train").n_rows)
    yield from describe_rows(data, np.arange(shown))


def _split_lines(data: PackedData) -> Iterator[str]:
    """Name the counts and the size of each split."""
    row_length = data.manifest.seq_len + 1
    for name, info in data.manifest.splits.items():
        size = in_units(data.split(name).size)
        rows = f"{info.rows:,} rows of {row_length}"
        yield f"{name:<13} {rows}, {info.tokens:,} tokens, {info.documents:,} documents, {size}"


def _source_lines(files: Iterable[SourceFile]) -> Iterator[str]:
    for file in files:
        yield f"made of       {file.path} ({in_units(file.size)}, sha256 {file.sha256[:12]})"


def describe_rows(
    data: PackedData, row_ids: np.ndarray, seq_len: int | None = None
) -> Iterator[str]:
    """Show rows of the training split: row id and token ids, then the text."""
    for row, ids, text in show(data, row_ids, seq_len):
        token_ids = " ".join(map(str, ids))
        yield f"\nrow {row}: {token_ids}"
        yield text


def verify_all(path: Path) -> Iterator[str]:
    """Compare every byte of the data directory `path` with data.json, and name what was compared.

    Raises:
        UserError: `path` is not a data directory.
        DamagedError: there are faults; the message names every one.
    """
    if not is_data_directory(path):
        raise UserError(
            f"{path} is not a data directory (it has no {DataLayout(path).manifest.name})"
        )
    checked = verify_data(path)
    faults, shards = list(checked.faults), ""
    # Tokenizer and shards are found through data.json, so they wait until it is known to be right.
    if not faults:
        faults += _tokenizer_faults(path)
        shards, shard_faults = _verify_shards(path)
        faults += shard_faults
    if faults:
        raise DamagedError("; ".join(faults))
    yield f"{path}: {checked.stated} compared, {in_units(checked.bytes_total)}{shards}: as data.json says"
    yield f"fingerprint {checked.fingerprint}"


def _tokenizer_faults(path: Path) -> Iterator[str]:
    """Report a tokenizer that has ids beyond the stated vocabulary."""
    # A model that was trained on these data has no embedding for such an id.
    data = PackedData.open(path)
    if data.tokenizer_path is None:
        return
    size = vocabulary_size(load_tokenizer(data.tokenizer_path))
    if size > data.manifest.vocab_size:
        yield f"{data.tokenizer_path} has {size} ids, more than the {data.manifest.vocab_size} that data.json states"


def _verify_shards(path: Path) -> tuple[str, list[str]]:
    """Compare the shards of streamed rows: (how many were compared, their faults)."""
    data = PackedData.open(path)
    for name in data.manifest.splits:
        rows = data.split(name)
        if isinstance(rows, StreamedRows):
            compared, faults = rows.verify()
            total = len(rows.blocks)
            return f", and {compared:,} shards of {total:,} (those on this machine)", faults
    return "", []
