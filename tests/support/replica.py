"""The layout of pico-lm/pretokenized-dolma with small shards: Parquet, one column of as many ids in every row."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = (20, 20, 20, 7, 20, 20)
"""Rows of the shards: one of another size."""
LENGTH = 17
GROUP = 6
VOCABULARY = 280


def ids() -> np.ndarray:
    """All rows in order, (107, 17)."""
    return np.random.default_rng(5).integers(0, VOCABULARY, (sum(ROWS), LENGTH), dtype=np.int32)


def parquet(rows: np.ndarray, group: int = GROUP) -> bytes:
    """A shard of these rows, in row groups of `group`, beside a column that nobody asks for."""
    column = pa.array(rows.tolist(), type=pa.list_(pa.int32()))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"number": list(range(len(rows))), "input_ids": column}), buffer, row_group_size=group)
    return buffer.getvalue()


def name(shard: int) -> str:
    return f"data/train-{shard:05d}-of-{len(ROWS):05d}.parquet"


def files() -> dict[str, bytes]:
    """File -> bytes: the shards, a split for validation, and what is no data."""
    parts = np.split(ids(), np.cumsum(ROWS)[:-1])
    shards = {name(number): parquet(part) for number, part in enumerate(parts)}
    validation = np.random.default_rng(6).integers(0, VOCABULARY, (40, LENGTH), dtype=np.int32)
    return {**shards, "data/val-00000-of-00001.parquet": parquet(validation), "README.md": b"# a data set\n"}
