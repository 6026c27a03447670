"""Figures across depth: a metric over layers at a few steps, and when each layer came to stay near
where it ended."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pico_analyze.plot.data import OUTSIDE, PlotData, by_layer, is_wide
from pico_analyze.plot.panels import (
    COLUMNS,
    draw_no_data,
    label_below,
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
"""Similarity to the last step from which a layer counts as near it."""
_MOST_STEPS = 5
_MOST_TEXTS = 16  # cells side by side that have room for their step
_ROW = 0.32  # of a component in the figure of convergence, inches


def by_depth(shown: PlotData, columns: int = COLUMNS) -> Figure:
    """The metric over layers, one line for each of a few steps, one panel a component.

    Circuits: the mean over heads, and a dot for each head at the last step.
    """
    steps = pick_evenly(
        [
            int(step)
            for step in sorted(shown.rows.loc[shown.rows["value"].notna(), "step"].unique())
        ],
        _MOST_STEPS,
    )
    figure, panels = panels_of(title_of(shown), shown.rows, columns)
    for axes, table in panels:
        _draw_by_depth(axes, table, steps)
    figure.supylabel(shown.quantity)
    label_below(figure, "layer", shown.rows)
    if steps:
        step_bar(figure, steps)
    return figure


def convergence(shown: PlotData) -> Figure:
    """Components by layers: the first observed step from which on the similarity to the last stays
    at `NEAR` or above.

    Circuits: of the mean over heads. The reference must be the last step of the rows.
    """
    components = list(shown.rows["component"].unique())
    found = pd.DataFrame(
        {name: _near_from(rows) for name, rows in shown.rows.groupby("component", sort=False)}
    ).T
    found = found.reindex(components).sort_index(axis=1)
    steps = sorted(int(step) for step in shown.rows["step"].unique())
    figure = new_figure(
        1,
        1,
        f"{title_of(shown)}: from which step on at least {NEAR:g}",
        _ROW * len(components) + 0.6,
    )
    (axes,) = figure.axes
    places = found.map(lambda step: steps.index(int(step)) if pd.notna(step) else np.nan).to_numpy(
        dtype=float
    )
    axes.grid(visible=False)
    axes.set_facecolor("0.92")
    axes.imshow(
        places,
        aspect="auto",
        interpolation="none",
        cmap=step_colours(len(steps)),
        vmin=-0.5,
        vmax=len(steps) - 0.5,
    )
    for (row, column), place in np.ndenumerate(
        places if found.shape[1] <= _MOST_TEXTS else places[:, :0]
    ):
        dark = np.isnan(place) or place > len(steps) / 2
        text = "" if np.isnan(place) else short(steps[int(place)])
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="black" if dark else "white",
        )
    axes.set_yticks(range(len(components)), components)
    columns = thin_ticks(range(found.shape[1]), most=12)
    labels = ["-" if found.columns[i] == OUTSIDE else str(found.columns[i]) for i in columns]
    axes.set_xticks(columns, labels)
    label_below(figure, "layer", shown.rows)
    if found.shape[1] > _MOST_TEXTS:
        step_bar(figure, steps)
    return figure


def ends_at_its_reference(shown: PlotData) -> bool:
    """Whether the rows are similarities to their own last step, so that they say when something
    settled."""
    of_itself = shown.rows["reference_run"].fillna(shown.rows["run"]) == shown.rows["run"]
    reference = shown.rows.loc[of_itself, "reference_step"].dropna().unique()
    similar = shown.rows["unit"].eq("similarity").any()
    return bool(similar and len(reference) == 1 and reference[0] == shown.rows["step"].max())


def _near_from(rows: pd.DataFrame) -> pd.Series:
    """Of each layer the first step of the last unbroken stretch at `NEAR` or above; null where a
    value is lacking."""
    values = by_layer(rows)
    near = values.ge(NEAR)
    since = near.iloc[:, ::-1].cummin(axis=1).iloc[:, ::-1]
    return since.idxmax(axis=1).where(since.any(axis=1))


def _draw_by_depth(axes: Axes, table: pd.DataFrame, steps: list[int]) -> None:
    values = by_layer(table).reindex(columns=steps)
    if draw_no_data(axes, table, values):
        return
    colours = step_colours(len(steps))
    layers = [int(layer) for layer in values.index]
    for index, step in enumerate(steps):
        axes.plot(
            layers,
            values[step].to_numpy(),
            color=colours(index),
            marker="o",
            markersize=2.5,
            linewidth=1.2,
        )
    last = table[(table["step"] == steps[-1]) & table["head"].notna()]
    axes.plot(
        last["layer"].astype(float),
        last["value"],
        ".",
        color=colours(len(steps) - 1),
        markersize=2.5,
        alpha=0.5,
    )
    ticks = thin_ticks(range(len(layers)), most=6)
    axes.set_xticks(
        [layers[i] for i in ticks], ["-" if layers[i] == OUTSIDE else str(layers[i]) for i in ticks]
    )
    if is_wide(table, values):
        axes.set_yscale("log")
