"""The commands, one file each, for notebooks as well: they take plain values and return paths or
lines."""

from __future__ import annotations

from pico_analyze.commands.analyze import report_run, run_analysis
from pico_analyze.commands.audit import audit_run
from pico_analyze.commands.inspect import holdings, known_metrics, source_of
from pico_analyze.commands.progress import Say

__all__ = [
    "Say",
    "audit_run",
    "holdings",
    "known_metrics",
    "report_run",
    "run_analysis",
    "source_of",
]
