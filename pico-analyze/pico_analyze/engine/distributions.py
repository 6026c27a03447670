"""The distribution of the entries of tensors over steps, where one number would say too little."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from pico_contract.errors import DamagedError, UserError

from pico_analyze import linalg
from pico_analyze.components.select import MeasuredUnit, check_components, plan_units
from pico_analyze.engine.spectra import middle_layer, spread
from pico_analyze.sources.base import Source

BIN = 0.25
"""Width of a bin in standard deviations."""
_LEAST_REACH = 5.0
"""Standard deviations on either side that the bins cover at least."""


def distributions(
    source: Source,
    components: Sequence[str] | None = None,
    kind: str = "weights",
    split: str | None = None,
    layers: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Compute densities of entries, by default of the middle layer at a few steps.

    The columns are run, kind, split, component, layer, module, step, centre, density, n and
    standard_deviation. Entries are counted in bins of `BIN` standard deviations of the tensor at
    that step, about its mean, so that shapes can be compared over steps. `centre` is that of a bin;
    densities integrate to 1. A tensor that cannot be read, is not finite or does not vary is left
    out.

    Raises:
        UserError: no such tensors to read, a component that matches nothing, or layers that have
            none.
    """
    available = [step for step in source.steps if split in source.splits(step, kind)]
    what = f"{kind} (of split {split})" if split else kind
    if not available:
        raise UserError(f'run "{source.name}" has no intact {what} to read')
    modules = source.modules(available[-1], kind, split)
    if components is not None:
        check_components(components, modules)
    wanted = middle_layer(modules) if layers is None else layers
    chosen_steps = spread(available) if steps is None else steps
    frames: list[pd.DataFrame] = []
    for unit in plan_units(components, kind, modules, source.model):
        if unit.keys[0].layer in wanted and not unit.circuit:
            frames += _unit_frames(source, unit, kind, split, chosen_steps)
    if not frames:
        names = ", ".join(components or ["the layers"])
        raise UserError(f'run "{source.name}" has no {what} of {names} in layer {wanted}')
    return pd.concat(frames, ignore_index=True).astype({"layer": "Int64"})


def _unit_frames(
    source: Source, unit: MeasuredUnit, kind: str, split: str | None, steps: Sequence[int]
) -> Iterator[pd.DataFrame]:
    for step in steps:
        entries = _entries(source, unit.module, step, kind, split)
        deviation = float(entries.std()) if len(entries) > 1 else 0.0
        if not (math.isfinite(deviation) and deviation > 0):
            continue
        centres, density = _density((entries - entries.mean()) / deviation)
        yield pd.DataFrame(
            {
                "run": source.name,
                "kind": kind,
                "split": split,
                "component": unit.keys[0].component,
                "layer": unit.keys[0].layer,
                "module": unit.module,
                "step": step,
                "centre": centres,
                "density": density,
                "n": len(entries),
                "standard_deviation": deviation,
            }
        )


def _entries(
    source: Source, module: str, step: int, kind: str, split: str | None
) -> np.ndarray:
    """Read the entries of a module, flat and in float64; empty if they cannot be read."""
    try:
        return linalg.entries(source.tensor(step, kind, module, split)).flatten().numpy()
    except DamagedError:
        return torch.empty(0).numpy()


def _density(standardised: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute centres of bins that cover all entries, one of them 0, and the density in each."""
    reach = max(_LEAST_REACH, float(np.abs(standardised).max()))
    # An odd number of bins, so that one of them is centred on 0.
    half = math.ceil(reach / BIN)
    edges = (np.arange(-half, half + 2) - 0.5) * BIN
    counts, _ = np.histogram(standardised, bins=edges)
    return (edges[:-1] + edges[1:]) / 2, counts / (len(standardised) * BIN)
