"""Similarity matrices: between the steps of a run, and between the layers of a step; one panel a
component.

Rows are what is compared, columns what it is compared with, which is earlier. Where the order of
the two makes no difference the other half of the square is filled; the diagonal, a thing compared
with itself, is not measured.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from pico_contract.names import parse

from pico_analyze.plot.data import PlotData, layers_of
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
"""Metrics that tell x from y, beside a user's own: all others of `similarity` are symmetric."""


def between_steps(shown: PlotData, columns: int = COLUMNS) -> Figure:
    """Steps (upwards) by the steps that they are compared with, one panel a component, the mean
    over layers and heads.

    Of a single component one panel a layer, of a few.
    """
    layers = layers_of(shown.rows)
    if shown.rows["component"].nunique() > 1 or not layers:
        rows, over = shown.rows, f", mean of {len(layers)} layers" if len(layers) > 1 else ""
    else:
        over = ""
        rows = shown.rows[shown.rows["layer"].isin(pick_evenly(layers, _MOST_LAYERS))]
        rows = rows.assign(component=rows["component"] + ", layer " + rows["layer"].astype(str))
    figure = _matrices(f"{title_of(shown)}{over}", shown, rows, ["step", "reference_step"], columns)
    figure.supylabel("step")
    label_below(
        figure, "step" if _symmetric(shown) else "earlier step, with which it is compared", rows
    )
    return figure


def between_layers(shown: PlotData, columns: int = COLUMNS) -> Figure:
    """Layers (upwards) by the layers that they are compared with, one row of panels a component, at
    a few steps."""
    steps = pick_evenly(sorted(int(step) for step in shown.rows["step"].unique()), columns)
    rows = shown.rows[shown.rows["step"].isin(steps)]
    labels = rows["component"] + ", step " + rows["step"].astype(str)
    earlier = rows["reference_module"].map(lambda module: parse(module).layer)
    rows = rows.assign(component=labels, earlier=earlier)
    figure = _matrices(title_of(shown), shown, rows, ["layer", "earlier"], len(steps))
    figure.supylabel("layer")
    label_below(
        figure, "layer" if _symmetric(shown) else "earlier layer, with which it is compared", rows
    )
    return figure


def _matrices(
    title: str, shown: PlotData, rows: pd.DataFrame, keys: list[str], columns: int
) -> Figure:
    """A panel for each `component`, all in the same colours, so that panels can be compared."""
    figure, panels = panels_of(title, rows, columns)
    every = rows["value"].groupby([rows[key] for key in ("component", *keys)]).agg(_mean)
    norm = shared_norm(rows, every)
    for axes, table in panels:
        table = _both_ways(table, keys) if _symmetric(shown) else table
        values = table["value"].groupby([table[key] for key in keys]).agg(_mean).unstack()
        if draw_no_data(axes, table, values):
            continue
        draw_cells(axes, values, norm=norm)
        asked = table.groupby(keys).size().unstack().notna().to_numpy()
        blank = np.ma.masked_where(asked, np.ones(values.shape))
        axes.imshow(
            blank,
            aspect="auto",
            origin="lower",
            interpolation="none",
            cmap=ListedColormap(["white"]),
        )
    value_bar(figure, norm, shown.quantity)
    return figure


def _symmetric(shown: PlotData) -> bool:
    similar = shown.rows["unit"].eq("similarity").all()
    return bool(similar and shown.metric not in _ORDERED and ":" not in shown.metric)


def _both_ways(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Each number also with the two that it compares in the other order."""
    turned = table.rename(columns=dict(zip(keys, reversed(keys), strict=True)))
    return pd.concat([table, turned[table.columns]], ignore_index=True)


def _mean(values: pd.Series) -> float:
    """Over layers and heads; none where one has no value."""
    return float(values.mean(skipna=False))
