"""Sizes: of files, and as commands write them."""

from __future__ import annotations

from pathlib import Path


def bytes_of(directory: Path, pattern: str) -> int:
    """Bytes of the files below `directory` that fit `pattern`."""
    return sum(path.stat().st_size for path in directory.rglob(pattern))


def in_bytes(size: str) -> float:
    """Bytes of a size such as `1.5 GB`."""
    number, unit = size.split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
