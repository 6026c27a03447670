"""Packed rows on disk: memory-mapped to read, streamed to write."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from pico_contract import codec
from pico_contract.data_directory import (
    BLOCK_BYTES,
    DTYPES,
    BlockDigests,
    count_faults,
    verify_data,
)
from pico_contract.errors import DamagedError, UserError, did_you_mean
from pico_contract.layout import DataLayout
from pico_contract.schema import DataManifest, SplitInfo

from pico_train.data.byte_lengths import token_byte_lengths, written_byte_lengths
from pico_train.data.shards import DirectoryFiles, Files, Listing, StreamConfig, StreamedRows
from pico_train.data.tokenizer import Vocabulary, load_tokenizer

_START_BYTES = 16 * BLOCK_BYTES
"""Bytes of each split that are compared with data.json when a run begins.
They are 1 GiB, about a second."""


def smallest_dtype(vocab_size: int) -> str:
    """Return the name of the smallest stored type that holds every token id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class PackedRows:
    """The rows of one split: n_rows rows of seq_len + 1 ids, never loaded as a whole."""

    def __init__(self, layout: DataLayout, manifest: DataManifest, split: str) -> None:
        self.n_rows, self.seq_len = manifest.splits[split].rows, manifest.seq_len
        self._vocab_size, self._path = manifest.vocab_size, layout.rows(split)
        self._ids = np.memmap(
            self._path,
            dtype=DTYPES[manifest.dtype],
            mode="r",
            shape=(self.n_rows, self.seq_len + 1),
        )
        self.size = self._ids.nbytes
        """Bytes of all rows as they are stored."""
        self.blocks: tuple[int, ...] = ()
        """Rows that are best read together: none, because any row is read equally fast."""
        self.documents = np.memmap(layout.documents(split), dtype="<i8", mode="r")
        """Offsets (int64, in tokens of the split's stream) at which documents begin."""

    def take(self, row_ids: np.ndarray) -> np.ndarray:
        """Return token ids (len(row_ids), seq_len + 1) int64.

        Raises:
            IndexError: a row id that is not below n_rows.
            DamagedError: a row holds an id outside the vocabulary: the file was altered.
        """
        ids = self._ids[row_ids].astype(np.int64)
        if ids.size and ids.max() >= self._vocab_size:
            raise self._altered(row_ids, ids.max(axis=1))
        return ids

    def prefetch(self, row_ids: np.ndarray) -> None:
        """Do nothing: the rows are on this machine."""

    def _altered(self, row_ids: np.ndarray, largest: np.ndarray) -> DamagedError:
        """Name the first row whose largest id, (len(row_ids),), lies outside the vocabulary."""
        first = int(np.argmax(largest >= self._vocab_size))
        return DamagedError(
            f"{self._path}, row {row_ids[first]} holds the id {largest[first]}, outside the vocabulary of"
            f" {self._vocab_size}: its bytes were altered; prepare the data again"
        )


Rows = PackedRows | StreamedRows
"""The rows of a split, wherever they are stored; both classes have the same methods."""


@dataclass(frozen=True)
class PackedData:
    """An opened data directory."""

    path: Path
    manifest: DataManifest
    stream: StreamConfig = field(default_factory=StreamConfig)
    """The cache for shards that have to be downloaded."""

    @classmethod
    def open(cls, path: Path, stream: StreamConfig | None = None) -> PackedData:
        """Open a data directory and check the sizes of its files.

        `stream` sets up the cache for shards that have to be downloaded.

        Raises:
            UserError: `path` is not a data directory.
            DamagedError: a file of it is missing or was cut, by name.
        """
        layout = DataLayout(path)
        if not layout.manifest.is_file():
            raise UserError(
                f"{path} is not a data directory (it has no {layout.manifest.name}): make one with"
                " `pico-train data prepare`"
            )
        # Sizes only: hashes of a large data set would delay every start.
        problem = codec.verify_directory(path, DataManifest, name=layout.manifest.name)
        if problem is not None:
            raise DamagedError(problem)
        manifest = codec.read_manifest(layout.manifest, DataManifest)
        if fault := next(count_faults(layout, manifest), None):
            raise DamagedError(fault)
        return cls(path, manifest, stream or StreamConfig())

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer's file, or None if the data came without one."""
        path = DataLayout(self.path).tokenizer
        return path if path.is_file() else None

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the rows' ids."""
        eos = self.manifest.special_tokens.get("eos")
        return Vocabulary(self.path, self.tokenizer_path, eos, self.manifest.vocab_size)

    def token_byte_lengths(self) -> np.ndarray | None:
        """Return the bytes of text that each id stands for, (vocab,) int64; None if unknown.

        Preparing data compares the sum of these with the bytes of each document. Without that
        comparison (ids made by others, data of earlier versions) the kind of the tokenizer decides.
        """
        if self.tokenizer_path is None or self.manifest.token_bytes == "not exact":
            return None
        tokenizer = load_tokenizer(self.tokenizer_path)
        is_compared = self.manifest.token_bytes == "exact"
        return written_byte_lengths(tokenizer) if is_compared else token_byte_lengths(tokenizer)

    def split(self, name: str) -> Rows:
        """Return the rows of split `name` (train, validation).

        Raises:
            UserError: no such split; the message names those that exist.
        """
        if name not in self.manifest.splits:
            raise UserError(
                f'{self.path} has no split "{name}"{did_you_mean(name, self.manifest.splits)}'
            )
        layout = DataLayout(self.path)
        if not layout.shards(name).is_file():
            return PackedRows(layout, self.manifest, name)
        listing = Listing.read(layout.shards(name))
        return StreamedRows(
            listing, self._files(listing), self.manifest.vocab_size, DTYPES[self.manifest.dtype]
        )

    def verify_at_start(self) -> str | None:
        """Compare the bytes with data.json when a run begins; return a notice if only a part was.

        Raises:
            DamagedError: a file was altered, by name.
        """
        checked = verify_data(self.path, _START_BYTES)
        if checked.faults:
            raise DamagedError(
                f"{checked.faults[0]}; `pico-train data verify {self.path}` names every fault"
            )
        if checked.is_whole:
            return None
        return (
            f"{self.path}: {checked.stated} were compared with data.json; `pico-train data verify {self.path}`"
            " compares all"
        )

    def _files(self, listing: Listing) -> Files:
        """Return the place that the shards of a listing are read from."""
        if listing.repo is None:
            return DirectoryFiles(Path(str(listing.directory)))
        from pico_train.data.hub_files import (
            HubFiles,
        )  # only streamed data need the hub's client

        cache = self.stream.cache or DataLayout(self.path).cache
        # The cache must have space for several of the largest shard.
        largest = max(shard.size for shard in listing.shards)
        return HubFiles(
            listing.repo, str(listing.revision), cache, self.stream.cache_gib, largest
        )


class PackedWriter:
    """A writer that packs documents into rows of one split, with less than one row in memory.

    Leaving its context closes the files.
    """

    def __init__(self, layout: DataLayout, split: str, seq_len: int, dtype: str) -> None:
        self._dtype, self._row = DTYPES[dtype], seq_len + 1
        self._rows = layout.rows(split).open("wb")
        self._documents = layout.documents(split).open("wb")
        self._rest = np.empty(0, dtype=self._dtype)
        self._hash, self._blocks = hashlib.sha256(), BlockDigests()
        self._n_rows = self._n_documents = self.tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._rows.close()
        self._documents.close()

    def add(self, ids: np.ndarray) -> None:
        """Append one document's ids, its end-of-text token included."""
        self._documents.write(np.array([self.tokens], dtype="<i8").tobytes())
        self._n_documents += 1
        self.tokens += len(ids)
        # Rows ignore the ends of documents; the rest waits for the next one.
        stream = np.concatenate((self._rest, ids.astype(self._dtype)))
        n_whole = len(stream) // self._row
        end = n_whole * self._row
        data = stream[:end].tobytes()
        self._rows.write(data)
        self._hash.update(data)
        self._blocks.update(data)
        self._n_rows += n_whole
        self._rest = stream[end:]

    def close(self) -> tuple[SplitInfo, str]:
        """Return (counts, sha256 of the stream of ids)."""
        self._rows.close()
        self._documents.close()
        # The last tokens fill no row. The hash covers them, so that it identifies the documents.
        tail = self._rest.tobytes()
        self._hash.update(tail)
        info = SplitInfo(
            rows=self._n_rows,
            tokens=self.tokens,
            documents=self._n_documents,
            dropped_tokens=len(self._rest),
            tail=tail.hex(),
            blocks=self._blocks.digests(),
        )
        return info, self._hash.hexdigest()
