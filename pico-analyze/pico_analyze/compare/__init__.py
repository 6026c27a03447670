"""Statistics of arms of runs."""

from __future__ import annotations

from pico_analyze.compare.differences import (
    COLUMNS,
    INTERVALS,
    compare,
    compared,
    curves,
    write,
)

__all__ = [
    "COLUMNS",
    "INTERVALS",
    "compare",
    "compared",
    "curves",
    "write",
]
