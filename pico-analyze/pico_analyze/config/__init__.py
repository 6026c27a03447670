"""The YAML of an analysis, that of 1.x, and what of it a run can give."""

from __future__ import annotations

from pico_analyze.config.analysis import (
    AnalysisConfig,
    FiguresConfig,
    Kinds,
    Part,
    Reference,
    Section,
    Splits,
    StepRange,
    Steps,
    check_trust,
    checked,
    load,
    to_yaml,
)

__all__ = [
    "AnalysisConfig",
    "FiguresConfig",
    "Kinds",
    "Part",
    "Reference",
    "Section",
    "Splits",
    "StepRange",
    "Steps",
    "check_trust",
    "checked",
    "load",
    "to_yaml",
]
