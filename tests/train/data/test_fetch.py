"""Fetching: a data directory of rows that stay on the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pico_contract.errors import UserError
from pico_train.data.packed import PackedData

from ...support import replica

Fetched = Callable[..., PackedData]


def test_the_manifest_counts_what_the_footers_say(fetched: Fetched, directory: Path) -> None:
    manifest = fetched(directory).manifest
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    assert (manifest.seq_len, manifest.vocab_size, manifest.dtype) == (16, 280, "uint16")
    assert (train.rows, train.tokens, validation.rows) == (107, 107 * 17, 40)
    assert manifest.source == str(directory)


def test_validation_rows_are_packed_and_limited(fetched: Fetched, directory: Path) -> None:
    data = fetched(directory, validation_rows=3)
    column = pq.read_table(directory / "data" / "val-00000-of-00001.parquet")["input_ids"]
    assert data.split("validation").take(np.arange(3)).tolist() == column.to_pylist()[:3]
    assert data.split("validation").n_rows == 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"files": "*trian*.parquet"}, 'has no file "*trian*.parquet"; did you mean "data/train-'),
        ({"column": "input_id"}, 'parquet has no column "input_id"; did you mean "input_ids"?'),
        ({"column": "number"}, "has 20 ids in 20 rows, which are not rows of one length: cut them anew with"),
        ({"files": "*.md"}, "README.md is not a Parquet file ("),
        ({"validation": {"path": "pydoc"}}, 'validation: "pydoc" holds text, where tokenised documents are expected'),
        ({"vocab_size": 200}, "holds the id 264, outside a vocabulary of 200"),
    ],
)
def test_what_cannot_be_streamed_is_one_sentence_and_leaves_nothing(
    fetched: Fetched, directory: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        fetched(directory, **changes)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["replica"]


def test_rows_of_two_lengths_are_refused(fetched: Fetched, directory: Path) -> None:
    (directory / replica.name(4)).write_bytes(replica.parquet(replica.ids()[:20, :9]))
    with pytest.raises(UserError, match=r"rows of data/train-00004-of-00006.parquet have 9 ids, those of .* 17"):
        fetched(directory)
