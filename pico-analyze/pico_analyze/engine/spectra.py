"""The singular values themselves over steps, for figures and other summaries."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from pico_contract.errors import DamagedError, UserError
from pico_contract.names import parse

from pico_analyze import linalg
from pico_analyze.components.select import (
    ComponentKey,
    MeasuredUnit,
    check_components,
    plan_units,
)
from pico_analyze.sources.base import Source

MOST_STEPS = 6
"""The default number of steps, chosen evenly among those that store weights."""


def spectra(
    source: Source,
    components: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Compute singular values of weights, by default those of the middle layer.

    The columns are run, kind, component, layer, head, step, index (from 1, descending), value and
    status. A step is left out if its file cannot be read, it is not finite, or it lacks the
    component, like a low-rank update before its factors exist.

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
    # One layer by default: spectra of all layers would fill many figures.
    wanted = middle_layer(modules) if layers is None else layers
    chosen_steps = spread(available) if steps is None else steps
    frames = []
    for unit in units:
        if unit.keys[0].layer not in wanted:
            continue
        for step in chosen_steps:
            spectra_of_step = _decomposed(source, unit, step)
            for key, spectrum in zip(unit.keys, spectra_of_step, strict=False):
                frames.append(_frame(source.name, key, step, spectrum))
    if not frames:
        names = ", ".join(components or ["the layers"])
        raise UserError(f'run "{source.name}" has no matrices of {names} in layer {wanted}')
    return pd.concat(frames, ignore_index=True).astype({"layer": "Int64", "head": "Int64"})


def _frame(run: str, key: ComponentKey, step: int, spectrum: linalg.Spectrum) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": run,
            "kind": "weights",
            "component": key.component,
            "layer": key.layer,
            "head": key.head,
            "step": step,
            "index": range(1, len(spectrum.values) + 1),
            "value": spectrum.values.numpy(),
            "status": "ok",
        }
    )


def _decomposed(source: Source, unit: MeasuredUnit, step: int) -> list[linalg.Spectrum]:
    try:
        matrices = unit.load(source, step, "weights", None)
    except UserError as error:
        # A step of the run merely lacks the unit; any other step is the caller's mistake.
        if isinstance(error, DamagedError) or step in source.steps:
            return []
        raise
    if all(len(matrix.shape) == 2 and linalg.is_finite(matrix) for matrix in matrices):
        return linalg.spectra(matrices)
    return []


def middle_layer(modules: Sequence[str]) -> list[int]:
    """Return the middle one of the layers that `modules` belong to; [] if they belong to none."""
    layers = {parse(name).layer for name in modules}
    known = sorted(layer for layer in layers if layer is not None)
    middle = len(known) // 2
    return known[middle : middle + 1]


def spread(steps: Sequence[int]) -> list[int]:
    """Choose `MOST_STEPS` of the steps evenly, including the first and the last."""
    if len(steps) <= MOST_STEPS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(i * last / (MOST_STEPS - 1))] for i in range(MOST_STEPS)]
