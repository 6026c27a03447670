"""The file metrics.jsonl: appended to, read back, and cut at the step that a session continues."""

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
    """The file metrics.jsonl, open for appending.

    Rows beyond the resumed step are first moved to a file in logs/; `was_cut` says whether any
    were.

    Raises:
        DamagedError: the path is a link or not a file, so that rows would go somewhere else.
    """

    def __init__(self, layout: RunLayout, resumed_step: int) -> None:
        problem = irregularity(layout.metrics)
        if problem not in (None, MISSING):
            raise DamagedError(f"{layout.metrics} {problem}")
        layout.logs.mkdir(parents=True, exist_ok=True)
        self.was_cut = _cut_metrics(layout, resumed_step)
        self._path = layout.metrics
        written = layout.metrics.read_bytes()
        self._size, self._hash = len(written), hashlib.sha256(written)
        self._handle: TextIO = layout.metrics.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        """Write `row` as one line of JSON, and flush it to the operating system."""
        # NaN is not JSON; other readers would reject the whole line.
        line = json.dumps(row, allow_nan=False) + "\n"
        # An error of the handle does not name its file.
        with rename_in_errors(self._path, self._path):
            self._handle.write(line)
            self._handle.flush()
        self._size += len(line)  # json.dumps writes ASCII: as many bytes as characters
        self._hash.update(line.encode())

    @property
    def entry(self) -> FileEntry:
        """The size and sha256 of all rows so far, which the next checkpoint records."""
        return FileEntry(self._size, self._hash.hexdigest())

    def sync(self) -> None:
        """Make every row durable, from any thread."""
        # A checkpoint promises the rows before it, so they must survive a power failure.
        with rename_in_errors(self._path, self._path):
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file."""
        # Closing flushes again, and a row that could not be written was reported by `append`.
        with contextlib.suppress(OSError):
            self._handle.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl that state a loss; skip damaged lines."""
    return [row for row in read_rows(path) if "loss" in row]


def _cut_metrics(layout: RunLayout, step: int) -> bool:
    """Move rows beyond `step` and damaged lines to a file in logs/; return whether any were."""
    kept: list[str] = []
    cut: list[str] = []
    for line in read_lines(layout.metrics):
        lines = kept if _is_row_up_to(step, line) else cut
        lines.append(f"{line.text}\n")
    # The removed lines are written first, so that a crash between the two writes loses none.
    if cut:
        codec.write_text(layout.cut_metrics(), "".join(cut))
    text = "".join(kept)
    if not layout.metrics.is_file() or layout.metrics.read_bytes() != text.encode():
        codec.write_text(layout.metrics, text)
    return bool(cut)


def _is_row_up_to(step: int, line: Line) -> bool:
    """Whether a line is the row of an update up to `step`."""
    return line.row is not None and "loss" in line.row and line.row["step"] <= step
