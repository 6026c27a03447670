"""The measured parts of a model: modules, circuits, low-rank updates."""

from __future__ import annotations

from pico_analyze.components.circuits import UPDATES
from pico_analyze.components.select import (
    DEFAULT_CIRCUITS,
    Key,
    Unit,
    across_layers,
    available,
    check,
    circuit_of,
    component_of,
    fitting,
    left_out,
    of_layers,
    plan,
)

__all__ = [
    "DEFAULT_CIRCUITS",
    "UPDATES",
    "Key",
    "Unit",
    "across_layers",
    "available",
    "check",
    "circuit_of",
    "component_of",
    "fitting",
    "left_out",
    "of_layers",
    "plan",
]
