"""The rows of metrics.jsonl, of which any line may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pico_contract.errors import DamagedError
from pico_contract.files import read_regular

Row = dict[str, Any]


def read_rows(path: Path) -> tuple[list[Row], list[int]]:
    """The rows of a metrics.jsonl, and the numbers of the lines that are none."""
    try:
        text = read_regular(path).decode("utf-8", errors="replace")
    except DamagedError:
        return [], []
    rows, odd = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        row = _parsed(line)
        if row is not None:
            rows.append(row)
        elif line:
            odd.append(number)
    return rows, odd


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and all(
        type(row.get(key, 0)) is int for key in ("step", "tokens")
    )
    return row if whole and 0 < row.get("step", -1) < 1 << 63 else None
