"""Figures over steps: lines by layer, and heat maps of layer x step, one panel a component.

A missing value leaves a gap; a line below the figure says how many there are and why.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pico_contract.errors import UserError
from pico_contract.names import parse

from pico_analyze.plot.data import (
    OUTSIDE,
    OVERVIEW,
    PlotData,
    all_plot_data,
    by_layer,
    is_wide,
    layers_of,
)
from pico_analyze.plot.panels import (
    COLUMNS,
    HEIGHT,
    STEP_AXIS,
    draw_cells,
    draw_no_data,
    label_below,
    layer_bar,
    layer_colours,
    new_figure,
    panels_of,
    scale_steps,
    shared_norm,
    title_of,
    value_bar,
)

_Style = Literal["-", "--", ":", "-."]
_HEAD_HEIGHT = 0.04  # of a head's row in a map, in inches
# Lines of one stack of layers (an encoder's) beside those of another.
_STYLES: tuple[_Style, ...] = ("-", "--", ":", "-.")
Cells = tuple[Axes, pd.DataFrame, pd.DataFrame]
"""A panel, its rows of the table, and the values of its cells."""


def lines(data: PlotData, columns: int = COLUMNS) -> Figure:
    """Draw the metric over steps, a line a layer, one panel a component.

    A circuit's line is the mean over its heads. Step 0 is part of the axis.
    """
    figure, panels = panels_of(title_of(data), data.rows, columns)
    layers = layers_of(data.rows)
    for axes, table in panels:
        _draw_lines(axes, table, layers)
    figure.supylabel(data.quantity)
    label_below(figure, STEP_AXIS, data.rows)
    layer_bar(figure, layers)
    return figure


def heatmap(data: PlotData, columns: int = COLUMNS) -> Figure:
    """Draw layers (upwards) by observed steps, one panel a component; circuits: mean over heads."""
    figure, panels = panels_of(title_of(data), data.rows, columns)
    _draw_maps(figure, data, [(axes, table, by_layer(table)) for axes, table in panels])
    figure.supylabel("layer")
    label_below(figure, "observed step", data.rows)
    return figure


def head_map(data: PlotData) -> Figure:
    """Draw every head of the circuits (upwards, by layer) by observed steps."""
    rows = data.rows[data.rows["head"].notna()]
    heads = len(rows[["layer", "head"]].drop_duplicates())
    figure, panels = panels_of(title_of(data), rows, height=max(_HEAD_HEIGHT * heads, HEIGHT))
    maps = []
    for axes, table in panels:
        by_head = table.pivot(index=["layer", "head"], columns="step", values="value")
        maps.append((axes, table, by_head))
    _draw_maps(figure, data, maps)
    figure.supylabel("layer, its heads upwards")
    label_below(figure, "observed step", rows)
    return figure


def overview(frame: pd.DataFrame) -> Figure:
    """Draw what `OVERVIEW` names over steps, each line the mean over the plain modules of a layer.

    If a model has several stacks of layers (encoder and decoder), each stack has its line style.
    """
    shown = [data for data in all_plot_data(frame) if data.between is None]
    if not shown:
        names = ", ".join(f"{metric} of {kind}" for kind, metric in OVERVIEW)
        raise UserError(f"the table has none of {names}")
    run = shown[0].rows["run"].iloc[0]
    figure = new_figure(1, len(shown), f"run {run}: mean over the modules of a layer")
    modules = [_plain_modules(data.rows) for data in shown]
    everything = pd.concat(modules)
    layers = layers_of(everything)
    stacks = list(everything["stack"].unique()) or [""]
    for axes, data, rows in zip(figure.axes, shown, modules, strict=True):
        for index, stack in enumerate(stacks):
            table = rows[rows["stack"] == stack]
            _draw_lines(axes, table, layers, _style(index))
        axes.set_title(data.object)
        # Panels side by side leave no width for a name and its unit in one line.
        axes.set_ylabel(data.quantity.replace(" (", "\n("))
    label_below(figure, STEP_AXIS, everything)
    layer_bar(figure, layers)
    if len(stacks) > 1:
        _add_legend(figure.axes[0], stacks)
    return figure


def _add_legend(axes: Axes, stacks: list[str]) -> None:
    samples = [Line2D([], [], color="0.25", linestyle=_style(i)) for i in range(len(stacks))]
    axes.legend(samples, stacks, fontsize="small")


def _style(index: int) -> _Style:
    return _STYLES[index % len(_STYLES)]


def _plain_modules(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of plain modules within layers, with the stack of layers of each."""
    stacks = []
    for component, module in zip(rows["component"], rows["module"], strict=True):
        stacks.append(_stack(component, parse(module).component))
    rows = rows.assign(stack=pd.Series(stacks, rows.index))
    return rows[rows["stack"].notna() & rows["layer"].notna()]


def _stack(component: str, module: str) -> str | None:
    """Return the stack that a component's name begins with, "" if none; None for a circuit.

    A plain module's component ends in the module's name within its layer; a circuit's does not.
    """
    if component == module:
        return ""
    if component.endswith(f".{module}"):
        return component.removesuffix(f".{module}")
    return None


def _draw_lines(
    axes: Axes, table: pd.DataFrame, layers: list[int], style: _Style = "-"
) -> None:
    values = by_layer(table)
    if draw_no_data(axes, table, values):
        return
    colours = layer_colours(len(layers))
    steps = [int(step) for step in values.columns]
    look: Any = {"linestyle": style, "marker": "o", "markersize": 2.5, "linewidth": 1.2}
    for layer, line in zip(values.index.tolist(), values.to_numpy(), strict=True):
        colour = "0.25" if layer == OUTSIDE else colours(layers.index(layer))
        axes.plot(steps, line, color=colour, **look)
    scale_steps(axes, steps)
    if is_wide(table, values):
        axes.set_yscale("log")


def _draw_maps(figure: Figure, data: PlotData, maps: list[Cells]) -> None:
    """Draw all maps on one scale of colours, with its bar; cells without a value stay hatched."""
    numbers = [values.to_numpy(dtype=float).ravel() for _, _, values in maps]
    norm = shared_norm(data.rows, pd.Series(np.concatenate(numbers)))
    for axes, table, values in maps:
        if not draw_no_data(axes, table, values):
            draw_cells(axes, values, norm=norm)
    value_bar(figure, norm, data.quantity)
