"""Verification of the frozen data directory, and closed forms of its digests."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from pico_contract import codec
from pico_contract.data_directory import BLOCK_BYTES, BlockDigests, data_fingerprint, shards_digest, verify_data
from pico_contract.errors import DamagedError
from pico_contract.files import LINKED
from pico_contract.layout import DataLayout
from pico_contract.schema import DataManifest
from pico_contract.verify import ALTERED

FROZEN = DataLayout(Path(__file__).parent / "fixtures" / "data_v1")


@pytest.fixture
def data(tmp_path: Path) -> DataLayout:
    return DataLayout(Path(shutil.copytree(FROZEN.root, tmp_path / "data")))


def test_the_frozen_data_is_whole() -> None:
    result = verify_data(FROZEN.root)
    manifest = codec.read_manifest(FROZEN.manifest, DataManifest)
    assert result.faults == []
    assert result.fingerprint == manifest.fingerprint
    assert result.bytes_checked == result.bytes_total == sum(entry.size for entry in manifest.files.values())
    assert result.stated.startswith("every byte")


@pytest.mark.parametrize("name", ["train.rows.bin", "validation.documents.bin", "tokenizer.json"])
def test_a_file_that_is_cut_missing_or_a_link_is_named(data: DataLayout, name: str) -> None:
    """C3.5, C8.1: all files are compared with data.json, and none may be a link."""
    path = data.root / name
    content = path.read_bytes()
    path.unlink()
    assert f"{path} is missing" in verify_data(data.root).faults
    elsewhere = data.root.parent / "elsewhere"
    elsewhere.write_bytes(content)
    path.symlink_to(elsewhere)
    assert f"{path} {LINKED}" in verify_data(data.root).faults
    path.unlink()
    path.write_bytes(content[:-1])
    sentence = f"{path} has {len(content) - 1} bytes where its manifest says {len(content)}"
    assert sentence in verify_data(data.root).faults


def test_altered_rows_are_found_by_hash(data: DataLayout) -> None:
    """C8.1: a difference is found."""
    rows = np.memmap(data.rows("train"), "<u2", "r+")
    rows[:2] = rows[:2][::-1].copy()
    rows.flush()
    assert verify_data(data.root).faults == [f"{data.rows('train')} {ALTERED}"]


def test_an_id_outside_the_vocabulary_is_named_with_its_row(data: DataLayout) -> None:
    """C8.2: an id of no token is refused."""
    rows = np.memmap(data.rows("train"), "<u2", "r+")
    rows[9] = 60_000
    rows.flush()
    expected = f"{data.rows('train')}, row 1 holds the id 60000, outside the vocabulary of 260"
    assert verify_data(data.root).faults == [expected]


def test_without_data_json_there_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"data\.json does not exist"):
        verify_data(tmp_path)


def test_digests_are_the_sha256_of_what_is_stated() -> None:
    expected = hashlib.sha256(b"8\ntrain aa\nvalidation bb").hexdigest()
    assert data_fingerprint(8, {"train": "aa", "validation": "bb"}) == expected
    assert shards_digest(9, [("aa", 3), ("bb", 4)]) == hashlib.sha256(b"9\naa 3\nbb 4").hexdigest()


@pytest.mark.parametrize("sizes", [[], [5], [BLOCK_BYTES], [BLOCK_BYTES - 1, 3], [1, BLOCK_BYTES]])
def test_blocks_do_not_depend_on_the_pieces_that_are_written(sizes: list[int]) -> None:
    digests, content = BlockDigests(), b""
    for size in sizes:
        piece = bytes([size % 251]) * size
        digests.update(piece)
        content += piece
    blocks = [content[start : start + BLOCK_BYTES] for start in range(0, len(content), BLOCK_BYTES)]
    assert digests.digests() == [hashlib.sha256(block).hexdigest() for block in blocks]
