"""metrics.jsonl, one row an update: written, read back, and cut at the step that a session
continues."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, TextIO

from pico_contract import codec
from pico_contract.errors import DamagedError, naming
from pico_contract.files import MISSING, irregular
from pico_contract.layout import RunLayout
from pico_contract.schema import FileEntry

_LARGEST = 1 << 63
"""No step and no loss of a run is as large: a number beyond it is damage."""


class MetricsFile:
    """metrics.jsonl, opened for appending after the rows beyond the resumed step were moved to
    logs/.

    `was_cut` says whether there were such rows.

    Raises:
        DamagedError: it is a link or not a file, and rows would go somewhere else.
    """

    def __init__(self, layout: RunLayout, resumed_step: int) -> None:
        problem = irregular(layout.metrics)
        if problem not in (None, MISSING):
            raise DamagedError(f"{layout.metrics} {problem}")
        layout.logs.mkdir(parents=True, exist_ok=True)
        before = layout.cuts
        _cut_metrics(layout, resumed_step)
        self.was_cut = layout.cuts > before
        self._path = layout.metrics
        written = layout.metrics.read_bytes()
        self._size, self._hash = len(written), hashlib.sha256(written)
        self._handle: TextIO = layout.metrics.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        """One JSON object on one line, handed to the operating system at once."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with naming(self._path, self._path):
            self._handle.write(line)
            self._handle.flush()
        self._size += len(line)  # JSON is written in ASCII
        self._hash.update(line.encode())

    @property
    def entry(self) -> FileEntry:
        """Size and sha256 of all rows so far, which the next checkpoint records."""
        return FileEntry(self._size, self._hash.hexdigest())

    def sync(self) -> None:
        """Make every row durable: called before a checkpoint that promises them, from any
        thread."""
        with naming(self._path, self._path):
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file; rows that could not be written were reported when they were appended."""
        with contextlib.suppress(OSError):
            self._handle.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; lines that are none (the last, cut short by a crash, or damage)
    are left out."""
    return [row for _, row in _lines(path) if row is not None]


def _lines(path: Path) -> list[tuple[str, dict[str, Any] | None]]:
    if not path.is_file():
        return []
    return [
        (line, _parsed(line))
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    ]


def _parsed(line: str) -> dict[str, Any] | None:
    """The row in a line of metrics.jsonl, None where it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # also a number of thousands of digits
        return None
    if not (
        isinstance(row, dict)
        and isinstance(row.get("step"), int)
        and isinstance(row.get("loss"), int | float)
    ):
        return None
    return (
        row
        if max(abs(row["step"]), abs(row["loss"])) < _LARGEST or row["loss"] != row["loss"]
        else None
    )


def _cut_metrics(layout: RunLayout, step: int) -> None:
    lines = _lines(layout.metrics)
    kept = [line for line, row in lines if row is not None and row["step"] <= step]
    cut = [line for line, row in lines if row is None or row["step"] > step]
    if cut:
        codec.write_text(layout.cut_metrics(), "".join(f"{line}\n" for line in cut))
    text = "".join(f"{line}\n" for line in kept)
    if not layout.metrics.is_file() or layout.metrics.read_bytes() != text.encode():
        codec.write_text(layout.metrics, text)
