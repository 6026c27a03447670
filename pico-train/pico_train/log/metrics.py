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
from pico_contract.errors import DamagedError, rename_in_errors
from pico_contract.files import MISSING, irregularity
from pico_contract.layout import RunLayout
from pico_contract.metrics_log import Line, read_lines, read_rows
from pico_contract.schema import FileEntry


class MetricsFile:
    """metrics.jsonl, opened for appending after the rows beyond the resumed step were moved to
    logs/.

    `was_cut` says whether there were such rows.

    Raises:
        DamagedError: it is a link or not a file, and rows would go somewhere else.
    """

    def __init__(self, layout: RunLayout, resumed_step: int) -> None:
        problem = irregularity(layout.metrics)
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
        with rename_in_errors(self._path, self._path):
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
        with rename_in_errors(self._path, self._path):
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file; rows that could not be written were reported when they were appended."""
        with contextlib.suppress(OSError):
            self._handle.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl that state a loss; damaged lines are left out."""
    return [row for row in read_rows(path) if "loss" in row]


def _cut_metrics(layout: RunLayout, step: int) -> None:
    lines = read_lines(layout.metrics)
    kept = [line.text for line in lines if _is_up_to(step, line)]
    cut = [line.text for line in lines if not _is_up_to(step, line)]
    if cut:
        codec.write_text(layout.cut_metrics(), "".join(f"{line}\n" for line in cut))
    text = "".join(f"{line}\n" for line in kept)
    if not layout.metrics.is_file() or layout.metrics.read_bytes() != text.encode():
        codec.write_text(layout.metrics, text)


def _is_up_to(step: int, line: Line) -> bool:
    """Whether a line is the row of an update up to `step`."""
    return line.row is not None and "loss" in line.row and line.row["step"] <= step
