"""Singular values over steps: how a spectrum takes its shape."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pico_analyze.plot.data import steps_of
from pico_analyze.plot.panels import COLUMNS, one_layer_of, panels_of, step_bar, step_colours


def spectra(values: pd.DataFrame, columns: int = COLUMNS) -> Figure:
    """Draw singular values by index, largest first, a line for each step, one panel a component.

    A circuit's line is the mean over its heads. The rows are those of
    `pico_analyze.engine.spectra.spectra`, of one layer.
    """
    steps = steps_of(values)
    kind, run = values["kind"].iloc[0], values["run"].iloc[0]
    title = f"singular values: {kind}{one_layer_of(values)}, run {run}"
    figure, panels = panels_of(title, values, columns)
    for axes, table in panels:
        _draw_spectra(axes, table, steps)
    figure.supylabel("singular value")
    figure.supxlabel("index, largest first")
    step_bar(figure, steps)
    return figure


def _draw_spectra(axes: Axes, table: pd.DataFrame, steps: list[int]) -> None:
    colours = step_colours(len(steps))
    groups = table.groupby(["step", "index"])
    means = groups["value"].mean()
    # Exact zeros cannot stand on a logarithmic axis.
    positive = means[means > 0]
    for step, line in positive.groupby(level="step"):
        places = line.index.get_level_values("index")
        index = steps.index(int(str(step)))
        axes.plot(places, line.to_numpy(), color=colours(index), linewidth=1.2)
    axes.set_yscale("log")
