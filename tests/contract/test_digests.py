"""Hashes that a session computes once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from pico_contract import digests


def test_a_file_is_read_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    reads = []
    hash_file = digests.sha256_file
    monkeypatch.setattr(digests, "sha256_file", lambda file: reads.append(file) or hash_file(file))
    assert digests.session_sha256(path) == digests.session_sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert len(reads) == 1


def test_other_bytes_of_the_same_size_and_time_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    os.utime(path, (0, 0))
    before = digests.session_sha256(path)
    other = tmp_path / "b.bin"
    other.write_bytes(b"two")
    os.utime(other, (0, 0))
    other.replace(path)
    assert digests.session_sha256(path) == hashlib.sha256(b"two").hexdigest() != before


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digests.session_sha256(tmp_path / "none")
