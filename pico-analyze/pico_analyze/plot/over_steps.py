"""Figures of a measurement table: a metric over steps by layer, heat maps of layer x step; one
panel a component.

What has no value leaves a gap, and a line below the figure says how many there are and why.
"""

from __future__ import annotations

from typing import Literal

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
    colours_of,
    draw_cells,
    draw_no_data,
    label_below,
    layer_bar,
    new_figure,
    panels_of,
    scale_steps,
    shared_norm,
    title_of,
    value_bar,
)

_Style = Literal["-", "--", ":", "-."]
_HEAD_HEIGHT = 0.04  # of a head's row in a map, inches
_STYLES: tuple[_Style, ...] = (
    "-",
    "--",
    ":",
    "-.",
)  # of the lines of one stack of layers, beside those of another


def lines(shown: PlotData, columns: int = COLUMNS) -> Figure:
    """The metric over steps (step 0 included), one line a layer, one panel a component; circuits:
    mean over heads."""
    figure, panels = panels_of(title_of(shown), shown.rows, columns)
    layers = layers_of(shown.rows)
    for axes, table in panels:
        _draw_lines(axes, table, layers)
    figure.supylabel(shown.quantity)
    label_below(figure, STEP_AXIS, shown.rows)
    layer_bar(figure, layers)
    return figure


def heatmap(shown: PlotData, columns: int = COLUMNS) -> Figure:
    """Layers (upwards) by observed steps, one panel a component; circuits: mean over heads."""
    figure, panels = panels_of(title_of(shown), shown.rows, columns)
    _draw_maps(figure, shown, [(axes, table, by_layer(table)) for axes, table in panels])
    figure.supylabel("layer")
    label_below(figure, "observed step", shown.rows)
    return figure


def head_map(shown: PlotData) -> Figure:
    """As `heatmap`, of the circuits alone and head by head."""
    rows = shown.rows[shown.rows["head"].notna()]
    height = _HEAD_HEIGHT * len(rows[["layer", "head"]].drop_duplicates())
    figure, panels = panels_of(title_of(shown), rows, height=max(height, HEIGHT))
    by_head = [
        (axes, t, t.pivot(index=["layer", "head"], columns="step", values="value"))
        for axes, t in panels
    ]
    _draw_maps(figure, shown, by_head)
    figure.supylabel("layer, its heads upwards")
    label_below(figure, "observed step", rows)
    return figure


def overview(frame: pd.DataFrame) -> Figure:
    """One row: what `OVERVIEW` names over steps, each line the mean over the plain modules of a
    layer.

    Layers of several stacks (encoder and decoder) are lines of their own, each stack in its own
    style.
    """
    shown = [one for one in all_plot_data(frame) if one.between is None]
    if not shown:
        raise UserError(
            f"the table has none of {', '.join(f'{metric} of {kind}' for kind, metric in OVERVIEW)}"
        )
    figure = new_figure(
        1, len(shown), f"run {shown[0].rows['run'].iloc[0]}: mean over the modules of a layer"
    )
    in_stacks = [one.rows.assign(stack=_stacks(one.rows)) for one in shown]
    of_modules = [rows[rows["stack"].notna() & rows["layer"].notna()] for rows in in_stacks]
    layers = layers_of(pd.concat(of_modules))
    stacks = list(pd.concat(of_modules)["stack"].unique()) or [""]
    for axes, one, rows in zip(figure.axes, shown, of_modules, strict=True):
        for index, stack in enumerate(stacks):
            _draw_lines(axes, rows[rows["stack"] == stack], layers, _STYLES[index % len(_STYLES)])
        axes.set_title(one.object)
        axes.set_ylabel(one.quantity.replace(" (", "\n("))
    label_below(figure, STEP_AXIS, pd.concat(of_modules))
    layer_bar(figure, layers)
    if len(stacks) > 1:
        lines = [
            Line2D([], [], color="0.25", linestyle=_STYLES[i % len(_STYLES)])
            for i in range(len(stacks))
        ]
        figure.axes[0].legend(lines, stacks, fontsize="small")
    return figure


def _stacks(rows: pd.DataFrame) -> pd.Series:
    """The name of each row's stack of layers, "" where the component bears none; null for
    circuits."""
    names = zip(rows["component"], rows["module"], strict=True)
    return pd.Series(
        [_stack(component, parse(module).component) for component, module in names], rows.index
    )


def _stack(component: str, own: str) -> str | None:
    """What stands before a plain module's name within its layer. Circuits are called otherwise than
    their module."""
    if component == own:
        return ""
    return component.removesuffix(f".{own}") if component.endswith(f".{own}") else None


def _draw_lines(axes: Axes, table: pd.DataFrame, layers: list[int], style: _Style = "-") -> None:
    values = by_layer(table)
    if draw_no_data(axes, table, values):
        return
    colours = colours_of(len(layers))
    steps = [int(step) for step in values.columns]
    for layer, row in zip(values.index.tolist(), values.to_numpy(), strict=True):
        colour = "0.25" if layer == OUTSIDE else colours(layers.index(layer))
        axes.plot(
            steps, row, color=colour, linestyle=style, marker="o", markersize=2.5, linewidth=1.2
        )
    scale_steps(axes, steps)
    if is_wide(table, values):
        axes.set_yscale("log")


def _draw_maps(
    figure: Figure, shown: PlotData, maps: list[tuple[Axes, pd.DataFrame, pd.DataFrame]]
) -> None:
    """Values (layer, or layer and head, by step) as cells in the same colours; those without a
    value stay hatched."""
    norm = shared_norm(
        shown.rows,
        pd.Series(np.concatenate([values.to_numpy(dtype=float).ravel() for _, _, values in maps])),
    )
    for axes, table, values in maps:
        if not draw_no_data(axes, table, values):
            draw_cells(axes, values, norm=norm)
    value_bar(figure, norm, shown.quantity)
