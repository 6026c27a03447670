"""The text of a configuration file: regular, bounded, in UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pico_contract.config_file import MAX_BYTES, read_text
from pico_contract.errors import UserError


def test_text_is_read_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("\ufeffname: ä\r\n".encode())
    assert read_text(path) == "name: ä\r\n"


def test_a_file_of_the_largest_size_is_read_and_no_larger_one(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"#" * MAX_BYTES)
    assert len(read_text(path)) == MAX_BYTES
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match=r"larger than a configuration may be \(1,048,576 bytes\)"):
        read_text(path)


def test_a_byte_that_is_not_utf_8_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(UserError, match=r"is not text in UTF-8 \(byte 0xff at offset 3\)"):
        read_text(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match=r"not a regular file|Is a directory"):
            read_text(path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")
