"""The measured parts of a model: modules, circuits, low-rank updates."""

from __future__ import annotations

from pico_analyze.components.circuits import UPDATES
from pico_analyze.components.select import (
    DEFAULT_CIRCUITS,
    ComponentKey,
    MeasuredUnit,
    across_layers,
    available,
    check_components,
    component_of,
    layer_matrices,
    matching_modules,
    omitted_circuits,
    parse_circuit,
    plan_units,
)

__all__ = [
    "DEFAULT_CIRCUITS",
    "UPDATES",
    "ComponentKey",
    "MeasuredUnit",
    "across_layers",
    "available",
    "check_components",
    "component_of",
    "layer_matrices",
    "matching_modules",
    "omitted_circuits",
    "parse_circuit",
    "plan_units",
]
