"""Read metrics.jsonl, of which any line may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from pico_contract.errors import DamagedError
from pico_contract.files import read_regular

Row = dict[str, Any]

_LIMIT = 1 << 63
"""No step and no loss of a run is as large: a number beyond it is damage."""


class Line(NamedTuple):
    """One line of the file; `row` is None if it does not hold a row."""

    number: int
    text: str
    row: Row | None


def read_lines(path: Path) -> list[Line]:
    """Read every line of a metrics.jsonl, numbered from 1; a file that is missing or a link has
    none."""
    try:
        text = read_regular(path).decode("utf-8", errors="replace")
    except DamagedError:
        return []
    # Not splitlines: it would also cut at separators that JSON allows within a text.
    texts = text.removesuffix("\n").split("\n") if text else []
    return [Line(number, line, parse_row(line)) for number, line in enumerate(texts, start=1)]


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a metrics.jsonl; other lines (the last, cut short by a crash, or damage) are
    left out."""
    return [line.row for line in read_lines(path) if line.row is not None]


def parse_row(text: str) -> Row | None:
    """Parse a line as a row: an object with a `step`, and `tokens` and `loss` that are numbers if
    it has them."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):  # ValueError also for a number of thousands of digits
        return None
    if not isinstance(row, dict) or not _is_step(row.get("step")):
        return None
    # `type`, since true is an int to isinstance.
    is_counted = type(row.get("tokens", 0)) is int
    return row if is_counted and _is_loss(row.get("loss", 0.0)) else None


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 < value < _LIMIT


def _is_loss(value: Any) -> bool:
    """Whether a value can be a loss: any float, also one that is not finite, or a whole number
    below the limit."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < _LIMIT)
