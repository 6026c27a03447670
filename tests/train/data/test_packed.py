"""Packed rows: what is written is what was given, and what is damaged is named."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import DataLayout
from pico_contract.schema import DataManifest
from pico_train.data.packed import PackedData, PackedWriter, smallest_dtype


def packed(
    root: Path, documents: list[list[int]], seq_len: int, dtype: str = "uint16", vocab_size: int = 10
) -> tuple[PackedData, str]:
    layout = DataLayout(root)
    writer = PackedWriter(layout, "train", seq_len, dtype)
    for document in documents:
        writer.add(np.array(document, dtype=np.int64))
    info, digest = writer.close()
    manifest = DataManifest(
        fingerprint="f",
        source="test",
        licence="none",
        seq_len=seq_len,
        vocab_size=vocab_size,
        dtype=dtype,
        special_tokens={},
        splits={"train": info},
    )
    codec.seal(root, manifest, layout.manifest.name)
    return PackedData.open(root), digest


@pytest.fixture
def small(tmp_path: Path) -> PackedData:
    return packed(tmp_path, [[1, 2, 3], [4, 5], [6, 7, 8, 9]], seq_len=3)[0]


@hypothesis_settings(deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=12), seq_len=st.integers(1, 9))
def test_rows_and_dropped_tail_are_the_stream(documents: list[list[int]], seq_len: int) -> None:
    stream = [i for document in documents for i in document]
    if len(stream) <= seq_len:
        return
    with TemporaryDirectory() as root:
        data, digest = packed(Path(root), documents, seq_len)
        rows, info = data.split("train"), data.manifest.splits["train"]
        whole = info.rows * (seq_len + 1)
        assert rows.take(np.arange(rows.n_rows)).ravel().tolist() == stream[:whole]
        assert info.dropped_tokens == len(stream) - whole < seq_len + 1
        assert (info.tokens, info.documents) == (len(stream), len(documents))
        starts = np.cumsum([0, *map(len, documents)])[:-1]
        assert rows.documents.tolist() == starts.tolist()
        assert digest == hashlib.sha256(np.array(stream, dtype="<u2").tobytes()).hexdigest()


def test_rows_are_taken_in_the_order_asked_for(small: PackedData) -> None:
    rows = small.split("train")
    assert rows.take(np.array([1, 0, 1])).tolist() == [[5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert rows.take(np.array([0])).dtype == np.int64


def test_a_row_beyond_the_last_is_an_error(small: PackedData) -> None:
    with pytest.raises(IndexError):
        small.split("train").take(np.array([2]))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_the_smallest_type_that_holds_every_id(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    assert smallest_dtype(vocab_size) == dtype
    last = vocab_size - 1
    data, _ = packed(tmp_path, [[last, 0, last]], 2, dtype, vocab_size)
    assert data.split("train").take(np.array([0])).tolist() == [[last, 0, last]]
    assert DataLayout(tmp_path).rows("train").stat().st_size == 3 * {"uint16": 2, "uint32": 4}[dtype]


def test_bytes_are_little_endian(tmp_path: Path) -> None:
    packed(tmp_path, [[1, 258]], 1)
    assert DataLayout(tmp_path).rows("train").read_bytes() == b"\x01\x00\x02\x01"


def test_an_unknown_split_is_named_with_the_nearest(small: PackedData) -> None:
    with pytest.raises(UserError, match='has no split "trian"; did you mean "train"'):
        small.split("trian")


def test_a_directory_without_manifest_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a data directory \(it has no data.json\)"):
        PackedData.open(tmp_path)


def test_a_cut_file_is_named_with_both_sizes(small: PackedData) -> None:
    rows = DataLayout(small.path).rows("train")
    rows.write_bytes(rows.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"train.rows.bin has 15 bytes where its manifest says 16"):
        PackedData.open(small.path)


def test_a_missing_file_is_named(small: PackedData) -> None:
    DataLayout(small.path).documents("train").unlink()
    with pytest.raises(DamagedError, match=r"train.documents.bin is missing"):
        PackedData.open(small.path)
