"""Figures of a comparison: arms laid over each other, and where and when one differs from the
baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pico_analyze.plot.data import PlotData, by_layer, is_wide
from pico_analyze.plot.panels import (
    COLUMNS,
    LETTERS,
    STEP_AXIS,
    draw_cells,
    draw_no_data,
    label_below,
    panels_of,
    scale_steps,
    value_bar,
)

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # told apart by colour-blind eyes
_DIVERGING = "RdBu_r"
ALPHA = 0.05
"""Level of the max-t test whose cells are marked on a map."""
_DASHES = ("-", "--", "-.", ":")  # and on paper without colours

OVERLAY_HOW_TO_READ = (
    "A line for each arm, the mean over its runs and over layers, with a band from the least to the largest run. Bands "
    "show the runs there are and are no intervals: whether they overlap decides nothing, least of all where runs are "
    "paired by seeds."
)
_DIFFERENCES_HOW_TO_READ = (
    "Layers upwards, steps to the right: red where the arm lies above the baseline, "
    "blue where below."
)
_DOTS = (
    "A dot: the difference is not 0 by a max-t test at 0.05 that is adjusted for all cells of this map and keeps runs "
    "whole. If nothing differed, a map would have any dot in at most 5% of experiments."
)
_NO_DOTS = (
    "No cell is marked: a test adjusted for all cells needs 6 pairs, or 4 runs in each arm, to reach 0.05. Colours are "
    "sizes of differences, which seeds alone give too."
)


def overlay(shown: PlotData, columns: int = COLUMNS) -> Figure:
    """A line for each arm over steps, the mean over its runs and over layers, with a band from
    least to largest run.

    The rows are those of `compare.curves`.
    """
    figure, panels = panels_of(
        f"{shown.quantity}: {shown.object}, mean over layers", shown.rows, columns
    )
    arms = list(shown.rows["arm"].unique())
    for axes, table in panels:
        _draw_arms(axes, table, arms)
    figure.supylabel(shown.quantity)
    label_below(figure, STEP_AXIS, shown.rows)
    _legend(figure, arms)
    return figure


def difference_map(shown: PlotData, columns: int = COLUMNS) -> Figure:
    """Draw an arm's difference from the baseline by layer and step, with a dot where the max-t test
    reaches 0.05.

    The rows are those of `compare.compare`, of one arm, without the means over steps.
    """
    first = shown.rows.iloc[0]
    title = f"{shown.quantity}: {shown.object}, {first['arm']} less {first['baseline']}"
    figure, panels = panels_of(title, shown.rows, columns)
    maps = [(axes, table, by_layer(table)) for axes, table in panels]
    found = np.concatenate([values.to_numpy(dtype=float).ravel() for _, _, values in maps])
    most = float(np.nanmax(np.abs(found), initial=0)) or 1.0
    norm = Normalize(-most, most) if np.isfinite(found).any() else None
    for axes, table, values in maps:
        if draw_no_data(axes, table, values):
            continue
        draw_cells(axes, values, norm=norm, cmap=_DIVERGING)
        apart = by_layer(table.assign(value=(table["p_max_t"] <= ALPHA).astype(float)))
        rows, places = np.nonzero(apart.reindex_like(values).to_numpy() == 1)
        axes.plot(places, rows, "ko", markersize=3.5, markeredgecolor="white", markeredgewidth=0.6)
    dots = f"; dots: max-t p at most {ALPHA}" if shown.rows["p_max_t"].notna().any() else ""
    value_bar(figure, norm, f"difference of {shown.quantity}{dots}", _DIVERGING)
    figure.supylabel("layer")
    label_below(figure, "observed step", shown.rows)
    return figure


def difference_caption(shown: PlotData) -> str:
    """Say how a map of differences is read, and what its dots are or why it has none."""
    reachable = shown.rows["p_max_t"].notna().any()
    return f"{_DIFFERENCES_HOW_TO_READ} {_DOTS if reachable else _NO_DOTS}"


def _legend(figure: Figure, arms: list[str]) -> None:
    """Below the title, which it takes over: room is made for one text above the panels, not for
    two."""
    handles = [
        Line2D([], [], color=_colour(i), linestyle=_dash(i), label=arm)
        for i, arm in enumerate(arms)
    ]
    columns = max(1, int(LETTERS * figure.get_figwidth() / (max(map(len, arms)) + 8)))
    legend = figure.legend(
        handles=handles,
        title=figure.get_suptitle(),
        loc="outside upper center",
        ncols=min(columns, len(arms)),
        frameon=False,
    )
    figure.suptitle("")
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)


def _draw_arms(axes: Axes, table: pd.DataFrame, arms: list[str]) -> None:
    by_run = (
        table["value"]
        .groupby([table["arm"], table["run"], table["step"]])
        .agg(lambda v: v.mean(skipna=False))
    )
    values = by_run.unstack("step")
    if draw_no_data(axes, table, values):
        return
    steps = [int(step) for step in values.columns]
    for index, arm in enumerate(arms):
        if arm not in values.index.get_level_values("arm"):
            continue
        runs = values.loc[arm].to_numpy(dtype=float)
        axes.plot(
            steps, runs.mean(axis=0), color=_colour(index), linestyle=_dash(index), linewidth=1.4
        )
        if len(runs) > 1:
            axes.fill_between(
                steps,
                runs.min(axis=0),
                runs.max(axis=0),
                color=_colour(index),
                alpha=0.2,
                linewidth=0,
            )
    scale_steps(axes, steps)
    if is_wide(table, values):
        axes.set_yscale("log")


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _dash(index: int) -> Any:
    return _DASHES[index % len(_DASHES)]
