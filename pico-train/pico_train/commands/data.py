"""The commands that look at a data directory: what it is, and whether its bytes are those that were
written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pico_contract.data_directory import verify_data
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import DataLayout

from pico_train.checkpoint.disk_space import in_units
from pico_train.data.packed import PackedData
from pico_train.data.prepare import show
from pico_train.data.shards import StreamedRows
from pico_train.data.tokenizer import load_tokenizer, vocabulary_size


def is_data_directory(path: Path) -> bool:
    """Whether `path` is a data directory, by its data.json."""
    return DataLayout(path).manifest.is_file()


def describe_data(path: Path, overrides: Sequence[str], rows: int) -> Iterator[str]:
    """Say what the data directory `path` is, and show the first `rows` rows of its training split.

    Raises:
        UserError: an override, which data that are made do not take; DamagedError: a damaged file.
    """
    if overrides:
        raise UserError(
            f"{path} is a data directory, which takes no overrides: leave out {overrides[0]}"
        )
    data = PackedData.open(path)
    manifest = data.manifest
    special = (
        ", ".join(f"{role} {token}" for role, token in manifest.special_tokens.items()) or "none"
    )
    yield f"{path}: data of {manifest.source} (licence: {manifest.licence}), made {manifest.created}"
    yield f"fingerprint   {manifest.fingerprint}"
    yield f"vocabulary    {manifest.vocab_size:,} ids, stored as {manifest.dtype}; special tokens: {special}"
    yield f"tokenizer     {data.tokenizer_path or 'none'}"
    for name, info in manifest.splits.items():
        size = in_units(data.split(name).size)
        counts = f"{info.rows:,} rows of {manifest.seq_len + 1}, {info.tokens:,} tokens, {info.documents:,} documents"
        yield f"{name:<13} {counts}, {size}"
    for file in manifest.source_files or ():
        yield f"made of       {file.path} ({in_units(file.size)}, sha256 {file.sha256[:12]})"
    yield f"verify with   pico-train data verify {path}"
    for row, ids, text in show(data, np.arange(min(rows, data.split("train").n_rows))):
        yield f"\nrow {row}: {' '.join(map(str, ids))}"
        yield text


def verify_all(path: Path) -> Iterator[str]:
    """Compare every byte of the data directory `path` with data.json; one line for each part that
    is as it should be.

    Raises:
        UserError: `path` is not a data directory.
        DamagedError: names every fault.
    """
    if not is_data_directory(path):
        raise UserError(
            f"{path} is not a data directory (it has no {DataLayout(path).manifest.name})"
        )
    checked = verify_data(path)
    faults, shards = list(checked.faults), ""
    if not faults:
        faults += _tokenizer_faults(path)
        shards, damaged = _shards(path)
        faults += damaged
    if faults:
        raise DamagedError("; ".join(faults))
    yield f"{path}: {checked.stated} compared, {in_units(checked.bytes_total)}{shards}: as data.json says"
    yield f"fingerprint {checked.fingerprint}"


def _tokenizer_faults(path: Path) -> Iterator[str]:
    data = PackedData.open(path)
    if data.tokenizer_path is None:
        return
    size = vocabulary_size(load_tokenizer(data.tokenizer_path))
    if size > data.manifest.vocab_size:
        yield f"{data.tokenizer_path} has {size} ids, more than the {data.manifest.vocab_size} that data.json states"


def _shards(path: Path) -> tuple[str, list[str]]:
    """(a phrase on the shards that were compared, what is wrong with any)."""
    data = PackedData.open(path)
    for name in data.manifest.splits:
        rows = data.split(name)
        if isinstance(rows, StreamedRows):
            found, faults = rows.verify()
            return f", and {found:,} shards of {len(rows.blocks):,} (those on this machine)", faults
    return "", []
