"""Streamed rows: shards in Parquet, of which only those that hold the requested rows are read.

A data directory then holds a listing of shards in place of packed rows: the path, size, sha256 and
number of rows of each. A row's id is its position in all shards, in their order, so that a row is
found by arithmetic.
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
    """The cache for shards of the hub; not read for data on this machine."""

    cache: Path | None = None
    """Directory for downloaded shards; null is `cache/` in the data directory.
    It is best on a disk of the machine itself."""
    cache_gib: float = Field(20.0, gt=0)
    """Size of the cache in GiB; the least recently used shards are deleted first."""


@dataclass(frozen=True)
class Shard:
    """One file: its path below the repository or directory, bytes, sha256 in hex, rows."""

    file: str
    size: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class Listing:
    """The files of a split, in order."""

    repo: str | None
    """A data set of the hub; None if the files are in `directory`."""
    revision: str | None
    """The commit that is read, even if its branch moves on."""
    directory: str | None
    column: str
    """The column with the token ids."""
    row_length: int
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """The rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """The sha256 over the row length and the shards' contents and counts, in order.

        It does not depend on where the shards are stored.
        """
        contents = [(shard.sha256, shard.rows) for shard in self.shards]
        return shards_digest(self.row_length, contents)

    def to_json(self) -> str:
        """Write the listing as JSON with one line a shard."""
        head = {key: value for key, value in vars(self).items() if key != "shards"}
        shards = ",\n".join(json.dumps(dataclasses.asdict(shard)) for shard in self.shards)
        # One line a shard keeps the file readable and its differences small.
        return json.dumps(head)[:-1] + f', "shards": [\n{shards}\n]}}\n'

    @classmethod
    def read(cls, path: Path) -> Listing:
        """Read the listing in a file.

        Raises:
            DamagedError: the file is not a listing.
        """
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            shards = tuple(Shard(**entry) for entry in raw["shards"])
            return cls(**{**raw, "shards": shards})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(f"{path} is not a listing of shards ({error})") from None


class Files(Protocol):
    """The place that shards are read from: a directory or the hub."""

    def path(self, shard: Shard) -> Path:
        """Return the shard as an intact file of this machine; waits for it."""
        ...

    def prefetch(self, shard: Shard) -> None:
        """Begin to bring the shard; errors are raised when `path` asks for it."""
        ...

    def path_of(self, shard: Shard) -> Path:
        """Return the shard's path on this machine, whether or not it is downloaded yet."""
        ...


class DirectoryFiles:
    """Shards below a directory. Each is checked once, when it is first read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._intact: set[str] = set()

    def path(self, shard: Shard) -> Path:
        """Return the path of the shard, intact."""
        path = self._directory / shard.file
        if shard.file not in self._intact:
            if not path.is_file():
                raise UserError(f"{path} is missing: {shard.rows:,} rows of the data lie in it")
            if (problem := alteration(path, shard)) is not None:
                raise DamagedError(
                    f"{problem}: restore it, or fetch the data anew under another name"
                )
            # Hashing again for every read would cost more than the read.
            self._intact.add(shard.file)
        return path

    def prefetch(self, shard: Shard) -> None:
        """Do nothing: the shard is on this machine."""

    def path_of(self, shard: Shard) -> Path:
        """Return the shard's path in the directory."""
        return self._directory / shard.file


def alteration(path: Path, shard: Shard) -> str | None:
    """Describe how the bytes at `path` differ from those of `shard`; None if they do not."""
    # The size is compared first: hashing a shard takes seconds.
    size = path.stat().st_size
    if size != shard.size:
        return f"{path} has {size:,} bytes where {shard.size:,} were listed"
    if codec.sha256_file(path) != shard.sha256:
        return f"{path} does not have the sha256 that was listed"
    return None


class StreamedRows:
    """The rows of a split in shards, with the same methods as `PackedRows`."""

    def __init__(
        self, listing: Listing, files: Files, vocab_size: int, dtype: np.dtype[Any]
    ) -> None:
        self.n_rows, self.seq_len = listing.rows, listing.row_length - 1
        self.blocks = tuple(shard.rows for shard in listing.shards)
        """Rows of each shard: those of one shard are best read together."""
        self.size = sum(shard.size for shard in listing.shards)
        """Bytes of all shards."""
        self._listing, self._files = listing, files
        self._vocab_size, self._dtype = vocab_size, dtype
        self._ends = np.cumsum(self.blocks)  # (shards,): the row id after each shard's last
        self._decoded: OrderedDict[int, _Decoded] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, row_ids: np.ndarray) -> np.ndarray:
        """Return token ids (len(row_ids), seq_len + 1) int64; waits for the shards that hold them.

        Raises:
            IndexError: a row id that is not below n_rows.
            UserError: a shard does not exist or may not be read.
            DamagedError: a shard differs from the listing.
            ConnectionError: the hub could not be reached for minutes.
        """
        shape = len(row_ids), self.seq_len + 1
        ids = np.empty(shape, dtype=np.int64)
        shards = self._shards_of(row_ids)
        # One shard after the other, so that few are open at a time.
        for number in np.unique(shards).tolist():
            in_shard = shards == number
            first_row = self._ends[number] - self.blocks[number]
            positions = row_ids[in_shard] - first_row
            # The thread that reads ahead and the training loop may both ask for rows.
            with self._lock:
                rows = self._open(number).take(positions)
            ids[in_shard] = rows
        return ids

    def prefetch(self, row_ids: np.ndarray) -> None:
        """Begin to bring the shards that hold these rows."""
        for number in np.unique(self._shards_of(row_ids)):
            self._files.prefetch(self._listing.shards[number])

    def verify(self) -> tuple[int, list[str]]:
        """Compare every shard on this machine; return their number and a sentence for each fault.

        A shard of the hub may be absent; one of a directory may not.
        """
        n_present, faults = 0, list[str]()
        for shard in self._listing.shards:
            path = self._files.path_of(shard)
            if path.is_file():
                n_present += 1
                fault = alteration(path, shard)
                faults += [fault] if fault is not None else []
            elif self._listing.repo is None:
                faults.append(f"{path} is missing")
        return n_present, faults

    def _shards_of(self, row_ids: np.ndarray) -> np.ndarray:
        """Return the number of the shard that holds each row, (len(row_ids),)."""
        outside = row_ids[(row_ids < 0) | (row_ids >= self.n_rows)]
        if outside.size:
            raise IndexError(f"row {outside[0]} is not among the {self.n_rows} rows")
        return np.searchsorted(self._ends, row_ids, side="right")

    def _open(self, number: int) -> _Decoded:
        """Return a shard ready to decode, and forget the one used longest ago."""
        if number not in self._decoded:
            shard = self._listing.shards[number]
            # Waits for a download, if the shard is not here yet.
            path = self._files.path(shard)
            self._decoded[number] = _Decoded(
                path, shard, self._listing, self._vocab_size, self._dtype
            )
        self._decoded.move_to_end(number)
        # Rows are stored decoded, so that memory needs a bound.
        while len(self._decoded) > _OPEN:
            self._decoded.popitem(last=False)
        return self._decoded[number]


class _Decoded:
    """One shard, whose row groups are decoded when one of their rows is first read."""

    def __init__(
        self, path: Path, shard: Shard, listing: Listing, vocab_size: int, dtype: np.dtype[Any]
    ) -> None:
        import pyarrow.parquet as pq

        self._name, self._listing = shard.file, listing
        self._vocab_size, self._dtype = vocab_size, dtype
        self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum(sizes)  # (groups,): the position after each group's last row
        self._groups: dict[int, np.ndarray] = {}

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return rows by their position in the shard, in the stored dtype."""
        shape = len(positions), self._listing.row_length
        ids = np.empty(shape, dtype=self._dtype)
        groups = np.searchsorted(self._ends, positions, side="right")
        for number in np.unique(groups).tolist():
            in_group = groups == number
            first_row = self._ends[number - 1] if number else 0
            within = positions[in_group] - first_row
            ids[in_group] = self._group(number)[within]
        return ids

    def _group(self, number: int) -> np.ndarray:
        """Return the rows of a group, decoded once."""
        if number not in self._groups:
            table = self._file.read_row_group(number, columns=[self._listing.column])
            column = table.column(0).combine_chunks()
            lengths, values = column.value_lengths(), column.flatten()
            self._groups[number] = self._rows(lengths.to_numpy(), values.to_numpy())
        return self._groups[number]

    def _rows(self, lengths: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Check the lengths of rows and their joined ids; return the ids as rows."""
        length = self._listing.row_length
        other_lengths = lengths[lengths != length]
        if other_lengths.size:
            raise DamagedError(
                f"{self._name} holds a row of {other_lengths[0]} ids, not of {length}"
            )
        # Checked before the cast, which would wrap ids that do not fit.
        outside = values[(values < 0) | (values >= self._vocab_size)]
        if outside.size:
            raise DamagedError(
                f"{self._name} holds the id {outside[0]}, outside a vocabulary of {self._vocab_size}"
            )
        return values.astype(self._dtype).reshape(-1, length)
