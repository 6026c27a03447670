"""Figures across depth: a metric over layers, and when each layer settled near its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pico_analyze.plot.data import PlotData, by_layer, is_wide, steps_of
from pico_analyze.plot.panels import (
    COLUMNS,
    draw_no_data,
    label_below,
    layer_name,
    new_figure,
    panels_of,
    pick_evenly,
    short,
    step_bar,
    step_colours,
    thin_ticks,
    title_of,
)

NEAR = 0.9
"""The similarity to the last step from which a layer counts as near it."""
_MOST_STEPS = 5
# Cells side by side that are wide enough for the text of a step.
_MOST_TEXTS = 16
# Height of a component in the figure of convergence, in inches.
_ROW = 0.32


def by_depth(data: PlotData, columns: int = COLUMNS) -> Figure:
    """Draw the metric over layers, a line for each of a few steps, one panel a component.

    A circuit's line is the mean over its heads, with a dot for each head at the last step.
    """
    known = data.rows[data.rows["value"].notna()]
    steps = pick_evenly(steps_of(known), _MOST_STEPS)
    figure, panels = panels_of(title_of(data), data.rows, columns)
    for axes, table in panels:
        _draw_by_depth(axes, table, steps)
    figure.supylabel(data.quantity)
    label_below(figure, "layer", data.rows)
    if steps:
        step_bar(figure, steps)
    return figure


def convergence(data: PlotData) -> Figure:
    """Draw the step from which each layer stays at least as similar to the last step as `NEAR`.

    Rows are components, columns layers; a circuit counts by the mean over its heads. The reference
    of the rows must be their last step.
    """
    first_near = _first_steps_near(data.rows)
    components = list(first_near.index)
    steps = steps_of(data.rows)
    title = f"{title_of(data)}: from which step on at least {NEAR:g}"
    figure = new_figure(1, 1, title, _ROW * len(components) + 0.6)
    (axes,) = figure.axes
    places = _places_of(first_near, steps)
    _draw_step_cells(axes, places, len(steps))
    many_layers = first_near.shape[1] > _MOST_TEXTS
    if not many_layers:
        _write_steps(axes, places, steps)
    axes.set_yticks(range(len(components)), components)
    layers = [int(layer) for layer in first_near.columns]
    ticks = thin_ticks(range(len(layers)), most=12)
    axes.set_xticks(ticks, [layer_name(layers[i]) for i in ticks])
    label_below(figure, "layer", data.rows)
    if many_layers:
        step_bar(figure, steps)
    return figure


def ends_at_its_reference(data: PlotData) -> bool:
    """Return whether the rows are similarities of a run to its own last step.

    Only those say when something settled.
    """
    rows = data.rows
    with_itself = rows["reference_run"].fillna(rows["run"]) == rows["run"]
    references = rows.loc[with_itself, "reference_step"].dropna().unique()
    if not rows["unit"].eq("similarity").any() or len(references) != 1:
        return False
    return bool(references[0] == rows["step"].max())


def _first_steps_near(rows: pd.DataFrame) -> pd.DataFrame:
    """Tabulate component x layer, in the order of the rows: the first step from which all are near.

    It is null if the last value is not near or a later one is lacking.
    """
    by_component = {}
    for component, table in rows.groupby("component", sort=False):
        by_component[component] = _near_from(table)
    in_order = pd.DataFrame(by_component).T.reindex(list(rows["component"].unique()))
    return in_order.sort_index(axis=1)


def _near_from(rows: pd.DataFrame) -> pd.Series:
    """Return for each layer the first step of the last unbroken stretch at `NEAR` or above."""
    near = by_layer(rows).ge(NEAR)
    # A running minimum from the last step backwards: near here and at all later steps.
    since = near.iloc[:, ::-1].cummin(axis=1).iloc[:, ::-1]
    return since.idxmax(axis=1).where(since.any(axis=1))


def _places_of(table: pd.DataFrame, steps: list[int]) -> np.ndarray:
    """Replace each step of a table by its place among `steps`."""

    def place(step: float) -> float:
        return steps.index(int(step)) if pd.notna(step) else np.nan

    return table.map(place).to_numpy(dtype=float)


def _draw_step_cells(axes: Axes, places: np.ndarray, steps: int) -> None:
    """Draw cells in the colours of their steps; those without one stay grey."""
    axes.grid(visible=False)
    axes.set_facecolor("0.92")
    limits: Any = {"vmin": -0.5, "vmax": steps - 0.5}
    axes.imshow(places, aspect="auto", interpolation="none", cmap=step_colours(steps), **limits)


def _write_steps(axes: Axes, places: np.ndarray, steps: list[int]) -> None:
    """Write into each cell its step, in black on the light colours of later steps."""
    for (row, column), place in np.ndenumerate(places):
        light = np.isnan(place) or place > len(steps) / 2
        text = "" if np.isnan(place) else short(steps[int(place)])
        colour = "black" if light else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _draw_by_depth(axes: Axes, table: pd.DataFrame, steps: list[int]) -> None:
    values = by_layer(table).reindex(columns=steps)
    if draw_no_data(axes, table, values):
        return
    colours = step_colours(len(steps))
    layers = [int(layer) for layer in values.index]
    for index, step in enumerate(steps):
        means = values[step].to_numpy()
        axes.plot(
            layers, means, color=colours(index), marker="o", markersize=2.5, linewidth=1.2
        )
    last_step = table[table["step"] == steps[-1]]
    _dot_heads(axes, last_step, colours(len(steps) - 1))
    _label_depth(axes, layers)
    if is_wide(table, values):
        axes.set_yscale("log")


def _dot_heads(axes: Axes, rows: pd.DataFrame, colour: Any) -> None:
    heads = rows[rows["head"].notna()]
    # A nullable integer would become an object array, which matplotlib takes for categories.
    places = heads["layer"].astype(float)
    axes.plot(places, heads["value"], ".", color=colour, markersize=2.5, alpha=0.5)


def _label_depth(axes: Axes, layers: list[int]) -> None:
    ticks = thin_ticks(range(len(layers)), most=6)
    axes.set_xticks([layers[i] for i in ticks], [layer_name(layers[i]) for i in ticks])
