"""Distributions of entries over steps, beside the normal distribution."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pico_analyze.plot.data import steps_of
from pico_analyze.plot.panels import (
    COLUMNS,
    one_layer_of,
    panels_of,
    step_bar,
    step_colours,
    wrap_text,
)


def distributions(values: pd.DataFrame, columns: int = COLUMNS) -> Figure:
    """Draw densities over standard deviations, a line for each step, one panel a component.

    A dashed line is the normal distribution. The rows are those of
    `pico_analyze.engine.distributions.distributions`, of one layer.
    """
    steps = steps_of(values)
    kind, run = values["kind"].iloc[0], values["run"].iloc[0]
    splits = "".join(f" ({split})" for split in values["split"].dropna().unique()[:1])
    title = f"distribution of entries: {kind}{splits}{one_layer_of(values)}, run {run}"
    figure, panels = panels_of(title, values, columns)
    for axes, table in panels:
        _draw_normal(axes)
        _draw_densities(axes, table, steps)
    figure.supylabel("density")
    axis = "distance from the mean (standard deviations); dashed: a normal distribution"
    figure.supxlabel(wrap_text(figure, axis))
    step_bar(figure, steps)
    return figure


def _draw_normal(axes: Axes) -> None:
    x = np.linspace(-4, 4, 81)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    axes.plot(x, density, color="0.4", linestyle="--", linewidth=1)


def _draw_densities(axes: Axes, table: pd.DataFrame, steps: list[int]) -> None:
    colours = step_colours(len(steps))
    # Empty bins cannot stand on a logarithmic axis.
    filled = table[table["density"] > 0]
    for step, line in filled.groupby("step"):
        index = steps.index(int(str(step)))
        axes.plot(line["centre"], line["density"], color=colours(index), linewidth=1.2)
    axes.set_yscale("log")
