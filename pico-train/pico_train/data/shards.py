"""Rows that are streamed: shards in Parquet, of which only those are read that hold the rows asked
for.

A data directory then holds a listing of the shards in place of packed rows: where they lie, and of
each its size, sha256 and number of rows. A row's id is its place in all shards, in their order; so
a row is found by arithmetic.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pico_contract import codec
from pico_contract.data_directory import shards_digest
from pico_contract.errors import DamagedError, UserError
from pydantic import Field

from pico_train.config import Section

_OPEN = 2
"""Shards kept decoded: the one being read, and the one that a batch began in."""


class StreamConfig(Section):
    """Where shards of the hub are kept while they are read; not read where the data lies on this
    machine."""

    cache: Path | None = None
    """Directory for downloaded shards, best on a disk of the machine itself; null is `cache/` in
    the data directory."""
    cache_gib: float = Field(20.0, gt=0)
    """GiB that they may take; the least recently used go first."""


@dataclass(frozen=True)
class Shard:
    """One file: its path below the repository or directory, bytes, sha256 in hex, rows."""

    file: str
    size: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class Listing:
    """Which files a split consists of, in order; `repo` is a data set of the hub, or else
    `directory` is given."""

    repo: str | None
    revision: str | None  # the commit that is read, whatever its branch became since
    directory: str | None
    column: str
    row_length: int
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """sha256 over the row length and the shards' contents and counts in order, wherever they
        lie."""
        return shards_digest(self.row_length, [(shard.sha256, shard.rows) for shard in self.shards])

    def to_json(self) -> str:
        """One line a shard."""
        head = {key: value for key, value in vars(self).items() if key != "shards"}
        shards = ",\n".join(json.dumps(dataclasses.asdict(shard)) for shard in self.shards)
        return json.dumps(head)[:-1] + f', "shards": [\n{shards}\n]}}\n'

    @classmethod
    def read(cls, path: Path) -> Listing:
        """The listing in a file; DamagedError names it where it is none."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**raw, "shards": tuple(Shard(**entry) for entry in raw["shards"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(f"{path} is not a listing of shards ({error})") from None


class Files(Protocol):
    """Where the bytes of shards come from."""

    def path(self, shard: Shard) -> Path:
        """The shard as an intact file of this machine, which is waited for."""
        ...

    def prefetch(self, shard: Shard) -> None:
        """Begin to bring it; errors wait until it is asked for."""
        ...

    def path_of(self, shard: Shard) -> Path:
        """Where it lies on this machine, or will once it was downloaded."""
        ...


class DirectoryFiles:
    """Shards below a directory; each is checked once, when it is first read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._intact: set[str] = set()

    def path(self, shard: Shard) -> Path:
        """The shard, intact."""
        path = self._directory / shard.file
        if shard.file not in self._intact:
            if not path.is_file():
                raise UserError(f"{path} is missing: {shard.rows:,} rows of the data lie in it")
            if (problem := alteration(path, shard)) is not None:
                raise DamagedError(
                    f"{problem}: restore it, or fetch the data anew under another name"
                )
            self._intact.add(shard.file)
        return path

    def prefetch(self, shard: Shard) -> None:
        """It is here already."""

    def path_of(self, shard: Shard) -> Path:
        """Its path in the directory."""
        return self._directory / shard.file


def alteration(path: Path, shard: Shard) -> str | None:
    """In which way the bytes at `path` are not those of `shard`, or None."""
    size = path.stat().st_size
    if size != shard.size:
        return f"{path} has {size:,} bytes where {shard.size:,} were listed"
    if codec.sha256_file(path) != shard.sha256:
        return f"{path} does not have the sha256 that was listed"
    return None


class StreamedRows:
    """Rows of a split that lie in shards; the same interface as `PackedRows`, and what comes next
    may be announced."""

    def __init__(
        self, listing: Listing, files: Files, vocab_size: int, dtype: np.dtype[Any]
    ) -> None:
        self.n_rows, self.seq_len = listing.rows, listing.row_length - 1
        self.blocks = tuple(shard.rows for shard in listing.shards)
        """Rows of each shard: those of one shard are read together."""
        self.size = sum(shard.size for shard in listing.shards)
        """Bytes of all shards."""
        self._listing, self._files, self._vocab_size, self._dtype = (
            listing,
            files,
            vocab_size,
            dtype,
        )
        self._ends = np.cumsum(self.blocks)  # (shards,): the row id after each shard's last
        self._decoded: OrderedDict[int, _Decoded] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, row_ids: np.ndarray) -> np.ndarray:
        """Token ids (len(row_ids), seq_len + 1) int64; waits for the shards that hold them.

        Raises:
            IndexError: a row id that is not below n_rows.
            UserError: a shard is not there or may not be read; DamagedError: it is not what was
                listed.
            ConnectionError: the hub could not be reached for minutes.
        """
        found = np.empty((len(row_ids), self.seq_len + 1), dtype=np.int64)
        shards = self._shards_of(row_ids)
        for number in np.unique(shards):
            here = shards == number
            within = row_ids[here] - (self._ends[number] - self.blocks[number])
            with self._lock:
                found[here] = self._open(int(number)).take(within)
        return found

    def prefetch(self, row_ids: np.ndarray) -> None:
        """Begin to bring the shards that hold these rows."""
        for number in np.unique(self._shards_of(row_ids)):
            self._files.prefetch(self._listing.shards[number])

    def verify(self) -> tuple[int, list[str]]:
        """Compare every shard that is on this machine: how many there are, and one sentence for
        each that is damaged.

        A shard of the hub may be absent; one of a directory may not.
        """
        found, faults = 0, list[str]()
        for shard in self._listing.shards:
            path = self._files.path_of(shard)
            if path.is_file():
                found += 1
                faults += filter(None, [alteration(path, shard)])
            elif self._listing.repo is None:
                faults.append(f"{path} is missing")
        return found, faults

    def _shards_of(self, row_ids: np.ndarray) -> np.ndarray:
        outside = row_ids[(row_ids < 0) | (row_ids >= self.n_rows)]
        if outside.size:
            raise IndexError(f"row {outside[0]} is not among the {self.n_rows} rows")
        return np.searchsorted(self._ends, row_ids, side="right")

    def _open(self, number: int) -> _Decoded:
        if number not in self._decoded:
            shard = self._listing.shards[number]
            path = self._files.path(shard)
            self._decoded[number] = _Decoded(
                path, shard, self._listing, self._vocab_size, self._dtype
            )
        self._decoded.move_to_end(number)
        while len(self._decoded) > _OPEN:
            self._decoded.popitem(last=False)
        return self._decoded[number]


class _Decoded:
    """One shard, whose row groups are decoded when a row of them is first read."""

    def __init__(
        self, path: Path, shard: Shard, listing: Listing, vocab_size: int, dtype: np.dtype[Any]
    ) -> None:
        import pyarrow.parquet as pq

        self._name, self._listing, self._vocab_size, self._dtype = (
            shard.file,
            listing,
            vocab_size,
            dtype,
        )
        self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        self._ends = np.cumsum(
            [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        )
        self._groups: dict[int, np.ndarray] = {}

    def take(self, within: np.ndarray) -> np.ndarray:
        """Rows by their place in the shard, in the stored dtype."""
        groups = np.searchsorted(self._ends, within, side="right")
        found = np.empty((len(within), self._listing.row_length), dtype=self._dtype)
        for number in np.unique(groups):
            here = groups == number
            start = self._ends[number - 1] if number else 0
            found[here] = self._group(int(number))[within[here] - start]
        return found

    def _group(self, number: int) -> np.ndarray:
        if number not in self._groups:
            column = (
                self._file.read_row_group(number, columns=[self._listing.column])
                .column(0)
                .combine_chunks()
            )
            self._groups[number] = self._ids(
                column.value_lengths().to_numpy(), column.flatten().to_numpy()
            )
        return self._groups[number]

    def _ids(self, lengths: np.ndarray, values: np.ndarray) -> np.ndarray:
        length = self._listing.row_length
        if (lengths != length).any():
            raise DamagedError(
                f"{self._name} holds a row of {lengths[lengths != length][0]} ids, not of {length}"
            )
        outside = values[(values < 0) | (values >= self._vocab_size)]
        if outside.size:
            raise DamagedError(
                f"{self._name} holds the id {outside[0]}, outside a vocabulary of {self._vocab_size}"
            )
        return values.astype(self._dtype).reshape(-1, length)
