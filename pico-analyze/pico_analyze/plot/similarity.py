"""Similarity matrices: between the steps of a run, and between the layers of a step.

Rows are compared with columns, which are earlier. If the order of the two makes no difference, the
other half of the square is filled. The diagonal, a thing compared with itself, is not measured.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from pico_contract.names import parse

from pico_analyze.plot.data import PlotData, layers_of, steps_of
from pico_analyze.plot.panels import (
    COLUMNS,
    draw_cells,
    draw_no_data,
    label_below,
    panels_of,
    pick_evenly,
    shared_norm,
    title_of,
    value_bar,
)

_MOST_LAYERS = 4
_ORDERED = ("pwcca", "relative_distance")
"""Metrics for which the order of the two matters; a user's metric always counts as one."""


def between_steps(data: PlotData, columns: int = COLUMNS) -> Figure:
    """Draw steps (upwards) by the steps that they are compared with.

    Several components have a panel each, the mean over layers and heads; a single component has a
    panel for each of a few layers.
    """
    layers = layers_of(data.rows)
    rows, title = data.rows, title_of(data)
    if rows["component"].nunique() > 1 or not layers:
        if len(layers) > 1:
            title += f", mean of {len(layers)} layers"
    else:
        rows = rows[rows["layer"].isin(pick_evenly(layers, _MOST_LAYERS))]
        rows = _label_panels(rows, "layer")
    figure = _matrices(title, data, rows, ["step", "reference_step"], columns)
    figure.supylabel("step")
    label_below(figure, _axis(data, "step"), rows)
    return figure


def between_layers(data: PlotData, columns: int = COLUMNS) -> Figure:
    """Draw layers (upwards) by the layers that they are compared with, at `columns` steps.

    Each component has one row of panels.
    """
    steps = pick_evenly(steps_of(data.rows), columns)
    is_shown = data.rows["step"].isin(steps)
    rows = data.rows[is_shown]
    rows = _label_panels(rows, "step")
    rows = rows.assign(earlier=rows["reference_module"].map(_layer_of))
    title = title_of(data)
    figure = _matrices(title, data, rows, ["layer", "earlier"], len(steps))
    figure.supylabel("layer")
    label_below(figure, _axis(data, "layer"), rows)
    return figure


def _layer_of(module: str) -> int | None:
    return parse(module).layer


def _axis(data: PlotData, name: str) -> str:
    """Name the horizontal axis; half of the square is white if the order of the two matters."""
    return name if _is_symmetric(data) else f"earlier {name}, with which it is compared"


def _label_panels(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Add the value of a column to the name of the component: each gets a panel."""
    labels = rows["component"] + f", {column} " + rows[column].astype(str)
    return rows.assign(component=labels)


def _matrices(
    title: str, data: PlotData, rows: pd.DataFrame, keys: list[str], columns: int
) -> Figure:
    """Draw a panel for each `component`, all on one scale of colours."""
    figure, panels = panels_of(title, rows, columns)
    norm = shared_norm(rows, _means(rows, ["component", *keys]))
    for axes, table in panels:
        both = _both_ways(table, keys) if _is_symmetric(data) else table
        values = _means(both, keys).unstack()
        if draw_no_data(axes, both, values):
            continue
        draw_cells(axes, values, norm=norm)
        _whiten_unmeasured(axes, both, keys)
    value_bar(figure, norm, data.quantity)
    return figure


def _whiten_unmeasured(axes: Axes, table: pd.DataFrame, keys: list[str]) -> None:
    """Cover the pairs that are not in the table; the hatching is left to those without a value."""
    measured = table.groupby(keys).size().unstack().notna().to_numpy()
    cover = np.ma.masked_where(measured, np.ones(measured.shape))
    white = ListedColormap(["white"])
    axes.imshow(cover, aspect="auto", origin="lower", interpolation="none", cmap=white)


def _is_symmetric(data: PlotData) -> bool:
    similar = data.rows["unit"].eq("similarity").all()
    return bool(similar and data.metric not in _ORDERED and ":" not in data.metric)


def _both_ways(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Add each number a second time with its two keys exchanged."""
    turned = table.rename(columns=dict(zip(keys, reversed(keys), strict=True)))
    return pd.concat([table, turned[table.columns]], ignore_index=True)


def _means(table: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Average the values by `keys`, over layers and heads; null if one has no value."""
    groups = table["value"].groupby([table[key] for key in keys])
    # A mean of the remaining layers would not compare with its neighbours.
    return groups.agg(lambda values: float(values.mean(skipna=False)))
