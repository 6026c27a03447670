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
from pico_contract.layout import DataLayout
from pico_contract.schema import DataManifest, FileEntry, SplitInfo
from pico_contract.verify import ALTERED, file_damage

DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
BLOCK_BYTES = 1 << 26
"""Bytes of rows that share a digest in data.json."""
_HEX = re.compile(r"([0-9a-f]{2})*")


def data_fingerprint(seq_len: int, digests: Mapping[str, str]) -> str:
    """Hash the row length and, in order, the sha256 of each split's stream of ids (or list of
    shards)."""
    lines = [str(seq_len), *(f"{split} {digest}" for split, digest in digests.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def shards_digest(row_length: int, shards: Iterable[tuple[str, int]]) -> str:
    """Hash the row length and the (sha256, rows) of shards in their order, wherever they lie."""
    lines = [str(row_length)]
    lines += [f"{sha256} {rows}" for sha256, rows in shards]
    text = "\n".join(lines)
    return hashlib.sha256(text.encode()).hexdigest()


class BlockDigests:
    """The sha256 of each block of `BLOCK_BYTES` of a file that is being written."""

    def __init__(self) -> None:
        self._complete: list[str] = []
        self._hash, self._size = hashlib.sha256(), 0

    def update(self, data: bytes) -> None:
        """Add the bytes that follow."""
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
        """Return the digests of all blocks so far; the last block may be shorter."""
        last = [self._hash.hexdigest()] if self._size else []
        return self._complete + last


@dataclass
class DataVerification:
    """The result of `verify_data`."""

    fingerprint: str
    """The fingerprint that data.json states; it is a fault if the bytes have another."""
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
        """The amount that was compared, as a phrase for a message."""
        if self.is_whole:
            caution = (
                ""
                if self.is_fingerprint_checked
                else " (its fingerprint cannot be computed anew)"
            )
            return f"every byte{caution}"
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
    digests: dict[str, str] = {}
    read = set()
    for split in manifest.splits:
        read.add(layout.rows(split).name)
        digest = _split_digest(layout, manifest, split, result, limit)
        if digest is not None:
            digests[split] = digest
    for name, entry in manifest.files.items():
        if name not in read:
            result.faults += _file_faults(directory / name, entry, result)
    if digests.keys() == manifest.splits.keys() and not result.faults:
        _check_fingerprint(layout, manifest, digests, result)
    return result


def _check_fingerprint(
    layout: DataLayout,
    manifest: DataManifest,
    digests: Mapping[str, str],
    result: DataVerification,
) -> None:
    result.is_fingerprint_checked = True
    if data_fingerprint(manifest.seq_len, digests) != manifest.fingerprint:
        result.faults.append(f"{layout.manifest} states another fingerprint than its rows have")


def count_faults(layout: DataLayout, manifest: DataManifest) -> Iterator[str]:
    """Yield a sentence for each count of data.json that does not agree with the files that it
    lists."""
    for split, info in manifest.splits.items():
        if layout.shards(split).name in manifest.files:
            continue
        rows = layout.rows(split)
        names = [rows.name, layout.documents(split).name]
        missing = [name for name in names if name not in manifest.files]
        if missing:
            yield f'{layout.manifest} lists no {missing[0]}, which the split "{split}" consists of'
            continue
        problem = _wrong_counts(rows, manifest, info, manifest.files[rows.name])
        if problem is not None:
            yield problem


def _split_digest(
    layout: DataLayout,
    manifest: DataManifest,
    split: str,
    result: DataVerification,
    limit: int | None,
) -> str | None:
    """Check the rows and documents of a split; return the digest of its stream, None if it is not
    known."""
    info, path = manifest.splits[split], layout.rows(split)
    if layout.shards(split).name in manifest.files:
        return _listing_digest(layout.shards(split))
    entry = manifest.files.get(path.name)
    if entry is None:
        return None  # `count_faults` names it
    result.bytes_total += entry.size
    problem = file_damage(path, entry, hashes=False)
    if problem is not None:
        result.faults.append(f"{path} {problem}")
    if problem or _wrong_counts(path, manifest, info, entry):
        return None
    result.faults += _document_faults(layout.documents(split), info)
    if limit is not None and entry.size > limit:
        result.faults += _sampled_faults(path, info, limit, result)
        return None
    return _whole_digest(path, manifest, info, entry, result)


def _wrong_counts(
    path: Path, manifest: DataManifest, info: SplitInfo, entry: FileEntry
) -> str | None:
    dtype = manifest.dtype
    if dtype not in DTYPES:
        choices = ", ".join(DTYPES)
        return f'data.json of {path.parent} states the dtype "{dtype}": choose from {choices}'
    row_length = manifest.seq_len + 1
    ids = info.rows * row_length
    if entry.size != ids * DTYPES[dtype].itemsize:
        return f"{path} does not hold the {info.rows} rows of {row_length} ids that data.json states"
    tokens = info.tokens
    dropped = info.dropped_tokens
    if tokens != ids + dropped:
        return (
            f"{path} holds {ids} ids, but data.json states {tokens} tokens and {dropped} left"
        )
    if info.tail is not None and not _HEX.fullmatch(info.tail):
        return f"data.json of {path.parent} states a tail that is not written in hex digits"
    return None


def _whole_digest(
    path: Path,
    manifest: DataManifest,
    info: SplitInfo,
    entry: FileEntry,
    result: DataVerification,
) -> str | None:
    """Hash a file of rows, and check its ids; return the sha256 of the stream if the ids of its
    tail are known."""
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
    # An id outside the vocabulary ended the loop, so that the hash is of a part.
    if place * dtype.itemsize < entry.size:
        return None
    if digest.hexdigest() != entry.sha256:
        result.faults.append(f"{path} {ALTERED}")
        return None
    # The stream's hash covers the dropped ids too, which earlier versions did not record.
    if info.tail is None and info.dropped_tokens:
        return None
    # The fingerprint is that of the whole stream: the rows, and the ids that filled no row.
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
    wanted = max(2, limit // BLOCK_BYTES)
    with path.open("rb") as file:
        for number in _drawn(len(info.blocks), wanted):
            file.seek(number * BLOCK_BYTES)
            block = file.read(BLOCK_BYTES)
            result.bytes_checked += len(block)
            if hashlib.sha256(block).hexdigest() != info.blocks[number]:
                yield f"{path} does not have the sha256 of block {number} that data.json says: its bytes were altered"


def _drawn(count: int, wanted: int) -> list[int]:
    """Choose `wanted` of `count` blocks: the first, the last, and others drawn anew at each
    call."""
    if count <= wanted:
        return list(range(count))
    # The ends are always compared, since a cut or an appended piece shows there.
    middle = random.sample(range(1, count - 1), wanted - 2)
    return sorted([0, *middle, count - 1])


def _document_faults(path: Path, info: SplitInfo) -> Iterator[str]:
    """Find offsets of documents that do not begin at 0, go back or lie beyond the stream."""
    if not path.is_file() or path.stat().st_size != 8 * info.documents:
        yield f"{path} does not hold the {info.documents} offsets of documents that data.json states"
        return
    offsets = np.fromfile(path, dtype="<i8")
    if not len(offsets):
        return
    descends = bool((np.diff(offsets) < 0).any())
    if offsets[0] != 0 or offsets[-1] > info.tokens or descends:
        yield f"{path} holds offsets of documents that do not ascend from 0 to {info.tokens}"


def _file_faults(path: Path, entry: FileEntry, result: DataVerification) -> Iterator[str]:
    result.bytes_total += entry.size
    problem = file_damage(path, entry, hashes=True)
    if problem in (None, ALTERED):
        result.bytes_checked += entry.size
    if problem is not None:
        yield f"{path} {problem}"


def _listing_digest(path: Path) -> str | None:
    """Return the digest of a list of shards; None if it cannot be read, which its sha256 shows."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        shards = [(shard["sha256"], shard["rows"]) for shard in raw["shards"]]
        return shards_digest(raw["row_length"], shards)
    except (OSError, ValueError, KeyError, TypeError):
        return None
