"""Streamed rows: by arithmetic the same as all shards in one piece, from no more files than hold them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import DataLayout
from pico_train.config import validate
from pico_train.data.fetch import FetchConfig, fetch
from pico_train.data.order import RowOrder
from pico_train.data.packed import PackedData
from pico_train.data.shards import StreamedRows

from ...support import replica
from ...support.data_hub import REPO, StandIn

Fetched = Callable[..., PackedData]


def streamed(data: PackedData) -> StreamedRows:
    rows = data.split("train")
    assert isinstance(rows, StreamedRows)
    return rows


def order(data: PackedData, batch_size: int, shuffle: bool) -> RowOrder:
    rows = data.split("train")
    return RowOrder(rows.n_rows, batch_size, data.manifest.fingerprint, 0, shuffle, rows.blocks)


def test_rows_are_those_of_all_shards_in_one_piece(fetched: Fetched, directory: Path) -> None:
    rows = streamed(fetched(directory))
    assert (rows.n_rows, rows.seq_len, rows.blocks) == (107, 16, replica.ROWS)
    found = rows.take(np.arange(107))
    assert found.dtype == np.int64
    assert found.tolist() == replica.ids().tolist()
    mixed = np.array([106, 0, 66, 67, 60, 59, 0, 20, 106])
    assert rows.take(mixed).tolist() == replica.ids()[mixed].tolist()


@pytest.mark.parametrize("row", [107, -1])
def test_a_row_beyond_the_last_is_an_error(fetched: Fetched, directory: Path, row: int) -> None:
    with pytest.raises(IndexError, match=f"row {row} is not among the 107 rows"):
        streamed(fetched(directory)).take(np.array([row]))


def test_only_the_row_groups_that_hold_the_rows_are_decoded(
    fetched: Fetched, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **k: (read.append(i), original(self, i, **k))[1]
    )
    rows = streamed(fetched(directory))
    rows.take(np.array([45, 46, 59]))  # of shard 2, which begins at row 40 and has groups of 6
    assert read == [0, 1, 3]
    rows.take(np.array([40, 52]))
    assert read == [0, 1, 3, 2]


def test_equal_files_are_equal_data_wherever_they_lie(fetched: Fetched, directory: Path, hub: StandIn) -> None:
    here, there = fetched(directory), fetched(REPO, out="hub")
    assert here.manifest.fingerprint == there.manifest.fingerprint
    moved = fetched(shutil.copytree(directory, directory.with_name("moved")), out="moved-data")
    assert moved.manifest.fingerprint == here.manifest.fingerprint


@pytest.mark.parametrize("change", ["content", "order", "fewer"])
def test_other_files_are_other_data(fetched: Fetched, directory: Path, change: str) -> None:
    before = fetched(directory).manifest.fingerprint
    first, second = (directory / replica.name(i) for i in (0, 1))
    if change == "content":
        first.write_bytes(replica.parquet(replica.ids()[1:21]))
    elif change == "fewer":
        first.unlink()
    else:
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)
    assert fetched(directory, out="again").manifest.fingerprint != before


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_epoch_reads_every_row_once_and_a_batch_few_shards(
    fetched: Fetched, directory: Path, shuffle: bool
) -> None:
    rows = order(fetched(directory), 4, shuffle)
    stream = np.concatenate([rows.rows(step) for step in range(1, 82)])[: 3 * 107]
    epochs = stream.reshape(3, 107)
    assert all(sorted(epoch) == list(range(107)) for epoch in epochs.tolist())
    assert (epochs[0].tolist() != epochs[1].tolist()) == shuffle
    for step in range(1, 81):
        assert len(np.unique(np.searchsorted(np.cumsum(replica.ROWS), rows.rows(step), side="right"))) <= 2


def test_the_order_of_blocks_is_frozen() -> None:
    """These numbers are part of the format: a run continues with them on any version."""
    rows = RowOrder(10, 10, "f", 0, True, (3, 4, 3))
    assert [rows.rows(step).tolist() for step in (1, 2)] == [
        [1, 2, 0, 8, 9, 7, 3, 6, 5, 4],
        [0, 2, 1, 4, 6, 5, 3, 8, 7, 9],
    ]


def test_what_comes_ahead_lies_a_block_later(fetched: Fetched, directory: Path) -> None:
    rows = order(fetched(directory), 8, False)
    assert rows.ahead(1, 100).tolist() == rows.rows(4).tolist()  # 3 updates of 8 rows read a block of 20
    assert rows.ahead(99, 100).tolist() == rows.rows(100).tolist()
    assert RowOrder(50, 8, "f", 0).ahead(3, 9).tolist() == RowOrder(50, 8, "f", 0).rows(3).tolist()


def test_a_missing_shard_is_named(fetched: Fetched, directory: Path) -> None:
    rows = streamed(fetched(directory))
    (directory / replica.name(3)).unlink()
    assert len(rows.take(np.arange(60))) == 60
    with pytest.raises(UserError, match=r"train-00003-of-00006.parquet is missing: 7 rows of the data lie in it"):
        rows.take(np.array([60]))


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_shard_of_a_directory_is_named(fetched: Fetched, directory: Path, damage: str) -> None:
    rows = streamed(fetched(directory))
    path = directory / replica.name(0)
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    what = f"has {len(content) - 1:,} bytes where {len(content):,} were listed"
    with pytest.raises(DamagedError, match=what if damage == "cut" else "does not have the sha256 that was listed"):
        rows.take(np.array([0]))


def test_a_damaged_listing_is_named(fetched: Fetched, directory: Path) -> None:
    data = fetched(directory)
    path = DataLayout(data.path).shards("train")
    path.write_text(path.read_text().replace('"rows"', '"raws"', 1))
    with pytest.raises(DamagedError, match=r"train.shards.json is not a listing of shards \("):
        data.split("train")


def test_ids_beyond_the_vocabulary_are_refused_where_they_are_read(fetched: Fetched, directory: Path) -> None:
    rows = streamed(fetched(directory, vocab_size=279, validation=None))
    with pytest.raises(DamagedError, match=r"train-0000\d-of-00006.parquet holds the id 279, outside a vocabulary of"):
        rows.take(np.arange(107))


def test_a_shard_of_rows_of_several_lengths_that_add_up_is_refused_where_it_is_read(
    fetched: Fetched, directory: Path
) -> None:
    import pyarrow as pa

    uneven = pa.array([[1] * 16, [1] * 18], type=pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": uneven}), directory / replica.name(0))
    with pytest.raises(DamagedError, match="holds a row of 16 ids, not of 17"):
        streamed(fetched(directory)).take(np.array([0]))


def test_nothing_is_kept_of_shards_that_were_read_long_ago(fetched: Fetched, directory: Path) -> None:
    rows = streamed(fetched(directory))
    rows.take(np.arange(107))
    assert list(rows._decoded) == [4, 5]


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    raw = {"source": str(tmp_path / "shard"), "out": str(tmp_path / "out"), "vocab_size": 280}
    with pytest.raises(UserError, match=r'there is no directory .*/shard; did you mean "shards"\?'):
        fetch(validate(FetchConfig, raw, "test"))
