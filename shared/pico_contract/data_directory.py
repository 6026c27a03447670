"""Verification of a data directory: its bytes against data.json, and data.json against its own
fingerprint."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pico_contract import codec
from pico_contract.files import irregular
from pico_contract.layout import DataLayout
from pico_contract.schema import DataManifest, FileEntry, SplitInfo

DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
BLOCK_BYTES = 1 << 26
"""Bytes of rows that share a digest in data.json."""


def data_fingerprint(seq_len: int, digests: Mapping[str, str]) -> str:
    """Name data by the row length and, in order, the sha256 of each split's stream of ids (or list
    of shards)."""
    lines = [str(seq_len), *(f"{split} {digest}" for split, digest in digests.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def shards_digest(row_length: int, shards: Iterable[tuple[str, int]]) -> str:
    """sha256 over the row length and the (sha256, rows) of shards in their order, wherever they
    lie."""
    text = "\n".join([str(row_length), *(f"{sha256} {rows}" for sha256, rows in shards)])
    return hashlib.sha256(text.encode()).hexdigest()


class BlockDigests:
    """The sha256 of each block of `BLOCK_BYTES` of a file that is being written."""

    def __init__(self) -> None:
        self._complete: list[str] = []
        self._hash, self._size = hashlib.sha256(), 0

    def update(self, data: bytes) -> None:
        """Take the bytes that follow."""
        view = memoryview(data)
        while len(view):
            part = view[: BLOCK_BYTES - self._size]
            self._hash.update(part)
            self._size += len(part)
            view = view[len(part) :]
            if self._size == BLOCK_BYTES:
                self._complete.append(self._hash.hexdigest())
                self._hash, self._size = hashlib.sha256(), 0

    def digests(self) -> list[str]:
        """Those of all blocks so far; the last block may be shorter."""
        return [*self._complete, self._hash.hexdigest()] if self._size else list(self._complete)


@dataclass
class DataVerification:
    """The result of `verify_data`."""

    fingerprint: str
    """As data.json states it; it is a fault where the bytes have another."""
    faults: list[str] = field(default_factory=list)
    """One sentence for each thing that is wrong; it names the file."""
    bytes_checked: int = 0
    bytes_total: int = 0
    is_fingerprint_checked: bool = False
    """Whether the fingerprint was computed anew from the bytes, which data.json of earlier versions
    does not allow."""

    @property
    def is_whole(self) -> bool:
        """Whether every byte that data.json lists was read."""
        return self.bytes_checked == self.bytes_total

    @property
    def stated(self) -> str:
        """What was compared, as a phrase for a message."""
        if self.is_whole:
            return "every byte" + (
                "" if self.is_fingerprint_checked else " (its fingerprint cannot be computed anew)"
            )
        return f"{self.bytes_checked / 2**20:,.0f} of {self.bytes_total / 2**20:,.0f} MiB"


def verify_data(directory: Path, limit: int | None = None) -> DataVerification:
    """Compare a data directory with its data.json: every byte, or with `limit` a sample of larger
    files of rows.

    A file of rows larger than `limit` bytes is compared in about so many: its first and last block
    and others, drawn anew at each call, by the digests of blocks that data.json records. Where
    data.json (of an earlier version) records none, only the size of such a file is compared. Read
    in full, rows are also checked for ids outside the vocabulary. Shards of a stream are not read
    here, only their list.

    Raises:
        DamagedError: data.json itself cannot be read.
    """
    layout = DataLayout(directory)
    manifest = codec.read_manifest(layout.manifest, DataManifest)
    result = DataVerification(manifest.fingerprint, list(count_faults(layout, manifest)))
    digests = {
        split: _split_digest(layout, manifest, split, result, limit) for split in manifest.splits
    }
    rows = {layout.rows(split).name for split in manifest.splits}
    for name, entry in manifest.files.items():
        if name not in rows:
            result.faults += _file_faults(directory / name, entry, result)
    known = {split: digest for split, digest in digests.items() if digest is not None}
    if len(known) == len(digests) and not result.faults:
        result.is_fingerprint_checked = True
        if data_fingerprint(manifest.seq_len, known) != manifest.fingerprint:
            result.faults.append(f"{layout.manifest} states another fingerprint than its rows have")
    return result


def count_faults(layout: DataLayout, manifest: DataManifest) -> Iterator[str]:
    """Sentences on what data.json states of its splits that does not agree with the files that it
    lists."""
    for split, info in manifest.splits.items():
        if layout.shards(split).name in manifest.files:
            continue
        rows, documents = layout.rows(split), layout.documents(split)
        missing = [path.name for path in (rows, documents) if path.name not in manifest.files]
        if missing:
            yield f'{layout.manifest} lists no {missing[0]}, which the split "{split}" consists of'
        elif problem := _wrong_counts(rows, manifest, info, manifest.files[rows.name]):
            yield problem


def _split_digest(
    layout: DataLayout,
    manifest: DataManifest,
    split: str,
    result: DataVerification,
    limit: int | None,
) -> str | None:
    """Check the rows and documents of a split; the digest of its stream, None where it is not
    known."""
    info, path = manifest.splits[split], layout.rows(split)
    if layout.shards(split).name in manifest.files:
        return _listing_digest(layout.shards(split))
    entry = manifest.files.get(path.name)
    if entry is None:  # which `count_faults` names
        return None
    result.bytes_total += entry.size
    if problem := _absence(path, entry):
        result.faults.append(problem)
    if problem or _wrong_counts(path, manifest, info, entry):
        return None
    result.faults += _document_faults(layout.documents(split), info)
    if limit is not None and entry.size > limit:
        result.faults += _sampled_faults(path, info, limit, result)
        return None
    return _whole_digest(path, manifest, info, entry, result)


def _absence(path: Path, entry: FileEntry) -> str | None:
    if problem := irregular(path):
        return f"{path} {problem}"
    size = path.stat().st_size
    return (
        f"{path} has {size} bytes where its manifest says {entry.size}"
        if size != entry.size
        else None
    )


def _wrong_counts(
    path: Path, manifest: DataManifest, info: SplitInfo, entry: FileEntry
) -> str | None:
    if manifest.dtype not in DTYPES:
        return f'data.json of {path.parent} states the dtype "{manifest.dtype}": choose from {", ".join(DTYPES)}'
    expected = info.rows * (manifest.seq_len + 1)
    if entry.size != expected * DTYPES[manifest.dtype].itemsize:
        return f"{path} does not hold the {info.rows} rows of {manifest.seq_len + 1} ids that data.json states"
    if info.tokens != expected + info.dropped_tokens:
        return f"{path} holds {expected} ids, but data.json states {info.tokens} tokens and {info.dropped_tokens} left"
    if info.tail is not None and not re.fullmatch(r"([0-9a-f]{2})*", info.tail):
        return f"data.json of {path.parent} states a tail that is not written in hex digits"
    return None


def _whole_digest(
    path: Path, manifest: DataManifest, info: SplitInfo, entry: FileEntry, result: DataVerification
) -> str | None:
    """Hash a file of rows, and check its ids; the sha256 of the stream where the ids that filled no
    row are known."""
    digest, dtype = hashlib.sha256(), DTYPES[manifest.dtype]
    place = 0
    for block in _blocks(path):
        digest.update(block)
        ids = np.frombuffer(block, dtype=dtype)
        outside = np.flatnonzero(ids >= manifest.vocab_size)
        if outside.size:
            row = (place + int(outside[0])) // (manifest.seq_len + 1)
            result.faults.append(
                f"{path}, row {row} holds the id {ids[outside[0]]}, {_vocabulary(manifest)}"
            )
            break
        place += len(ids)
    result.bytes_checked += entry.size
    if place * dtype.itemsize < entry.size:
        return None
    if digest.hexdigest() != entry.sha256:
        result.faults.append(
            f"{path} does not have the sha256 that its manifest says: its bytes were altered"
        )
        return None
    if info.tail is None and info.dropped_tokens:
        return None
    digest.update(bytes.fromhex(info.tail or ""))
    return digest.hexdigest()


def _vocabulary(manifest: DataManifest) -> str:
    return f"outside the vocabulary of {manifest.vocab_size}"


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _sampled_faults(
    path: Path, info: SplitInfo, limit: int, result: DataVerification
) -> Iterator[str]:
    count = len(info.blocks)
    wanted = min(count, max(2, limit // BLOCK_BYTES))
    middle = range(1, count - 1)
    chosen = (
        sorted({0, count - 1, *random.sample(middle, min(len(middle), wanted - 2))})
        if count
        else []
    )
    with path.open("rb") as file:
        for number in chosen:
            file.seek(number * BLOCK_BYTES)
            block = file.read(BLOCK_BYTES)
            result.bytes_checked += len(block)
            if hashlib.sha256(block).hexdigest() != info.blocks[number]:
                yield f"{path} does not have the sha256 of block {number} that data.json says: its bytes were altered"


def _document_faults(path: Path, info: SplitInfo) -> Iterator[str]:
    """Offsets of documents that do not begin at 0, go back or lie beyond the stream."""
    if not path.is_file() or path.stat().st_size != 8 * info.documents:
        yield f"{path} does not hold the {info.documents} offsets of documents that data.json states"
        return
    offsets = np.fromfile(path, dtype="<i8")
    if len(offsets) and (
        offsets[0] != 0 or offsets[-1] > info.tokens or (np.diff(offsets) < 0).any()
    ):
        yield f"{path} holds offsets of documents that do not ascend from 0 to {info.tokens}"


def _file_faults(path: Path, entry: FileEntry, result: DataVerification) -> Iterator[str]:
    result.bytes_total += entry.size
    if problem := _absence(path, entry):
        yield problem
        return
    result.bytes_checked += entry.size
    if codec.sha256_file(path) != entry.sha256:
        yield f"{path} does not have the sha256 that its manifest says: its bytes were altered"


def _listing_digest(path: Path) -> str | None:
    """The digest of a list of shards; None where it cannot be read, which its sha256 shows."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return shards_digest(
            raw["row_length"], [(shard["sha256"], shard["rows"]) for shard in raw["shards"]]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
