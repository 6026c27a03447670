"""The singular values themselves, over steps: for figures, and for whoever wants more than a
summary of them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from pico_contract.errors import DamagedError, UserError
from pico_contract.names import parse

from pico_analyze import linalg
from pico_analyze.components.select import MeasuredUnit, check_components, plan_units
from pico_analyze.sources.base import Source

MOST_STEPS = 6
"""Of the steps that hold weights, this many evenly chosen ones by default."""


def spectra(
    source: Source,
    components: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Singular values of weights: run, kind, component, layer, head, step, index (from 1,
    descending), value, status.

    Of the middle layer by default. A step whose file cannot be read, that lacks the component (as a
    low-rank update before the factors begin), or holds what is not finite is left out.

    Raises:
        UserError: no weights to read, a component that matches nothing, or layers that have none.
    """
    available = [step for step in source.steps if source.splits(step, "weights")]
    if not available:
        raise UserError(f'run "{source.name}" has no intact weights to read')
    modules = source.modules(available[-1], "weights")
    if components is not None:
        check_components(components, modules)
    units = plan_units(components, "weights", modules, source.model)
    wanted = middle_layer(modules) if layers is None else layers
    frames = [
        pd.DataFrame(
            {
                "run": source.name,
                "kind": "weights",
                "component": key.component,
                "layer": key.layer,
                "head": key.head,
                "step": step,
                "index": range(1, len(found.values) + 1),
                "value": found.values.numpy(),
                "status": "ok",
            }
        )
        for unit in units
        if unit.keys[0].layer in wanted
        for step in (spread(available) if steps is None else steps)
        for key, found in zip(unit.keys, _decomposed(source, unit, step), strict=False)
    ]
    if not frames:
        of = ", ".join(components or ["the layers"])
        raise UserError(f'run "{source.name}" has no matrices of {of} in layer {wanted}')
    return pd.concat(frames, ignore_index=True).astype({"layer": "Int64", "head": "Int64"})


def _decomposed(source: Source, unit: MeasuredUnit, step: int) -> list[linalg.Spectrum]:
    try:
        matrices = unit.load(source, step, "weights", None)
    except UserError as error:
        if isinstance(error, DamagedError) or step in source.steps:
            return []
        raise
    whole = all(len(matrix.shape) == 2 and linalg.is_finite(matrix) for matrix in matrices)
    return linalg.spectra(matrices) if whole else []


def middle_layer(modules: Sequence[str]) -> list[int]:
    """The layer in the middle of those that `modules` lie in; [] where they lie in none."""
    known = sorted({layer for name in modules if (layer := parse(name).layer) is not None})
    return known[len(known) // 2 : len(known) // 2 + 1]


def spread(steps: Sequence[int]) -> list[int]:
    """`MOST_STEPS` of them, evenly chosen, first and last included."""
    if len(steps) <= MOST_STEPS:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (MOST_STEPS - 1))] for i in range(MOST_STEPS)]
