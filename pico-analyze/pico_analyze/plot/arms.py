"""Figures of a comparison: arms over each other, and where and when one differs from the baseline.

Their captions in the report are the constants below.
"""

from __future__ import annotations

from collections.abc import Sequence
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

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")  # tell arms apart in print without colours
_DIVERGING = "RdBu_r"  # colour map of differences: red above the baseline, blue below
ALPHA = 0.05
"""The level of the max-t test whose cells are marked on a map."""

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


def overlay(data: PlotData, columns: int = COLUMNS) -> Figure:
    """Draw a line for each arm over steps, with a band from its least to its largest run.

    A line is the mean over the arm's runs and over layers. The rows are those of `compare.curves`.
    """
    title = f"{data.quantity}: {data.object}, mean over layers"
    figure, panels = panels_of(title, data.rows, columns)
    arms = list(data.rows["arm"].unique())
    for axes, table in panels:
        _draw_arms(axes, table, arms)
    figure.supylabel(data.quantity)
    label_below(figure, STEP_AXIS, data.rows)
    _legend(figure, arms)
    return figure


def difference_map(data: PlotData, columns: int = COLUMNS) -> Figure:
    """Draw an arm's difference from the baseline by layer and step.

    A dot marks a difference for which the max-t test reaches 0.05. The rows are those of
    `compare.compare`, of one arm, without the means over steps.
    """
    first = data.rows.iloc[0]
    title = f"{data.quantity}: {data.object}, {first['arm']} less {first['baseline']}"
    figure, panels = panels_of(title, data.rows, columns)
    maps = [(axes, table, by_layer(table)) for axes, table in panels]
    norm = _symmetric_norm([values for _, _, values in maps])
    for axes, table, values in maps:
        if draw_no_data(axes, table, values):
            continue
        draw_cells(axes, values, norm=norm, cmap=_DIVERGING)
        _mark_cells(axes, table, values)
    label = f"difference of {data.quantity}"
    if _is_tested(data):
        label += f"; dots: max-t p at most {ALPHA}"
    value_bar(figure, norm, label, _DIVERGING)
    figure.supylabel("layer")
    label_below(figure, "observed step", data.rows)
    return figure


def _symmetric_norm(maps: Sequence[pd.DataFrame]) -> Normalize | None:
    """Scale the colours of all maps alike, with 0 in the middle; None if no value is finite."""
    numbers = np.concatenate([values.to_numpy(dtype=float).ravel() for values in maps])
    if not np.isfinite(numbers).any():
        return None
    largest = float(np.nanmax(np.abs(numbers), initial=0)) or 1.0
    return Normalize(-largest, largest)


def _mark_cells(axes: Axes, table: pd.DataFrame, values: pd.DataFrame) -> None:
    """Put a dot into each cell of `values` whose difference is not 0 by the max-t test."""
    significant = table.assign(value=(table["p_max_t"] <= ALPHA).astype(float))
    # A mean of 1 over the rows of a cell: all of them are.
    rows, columns = np.nonzero(by_layer(significant).reindex_like(values).to_numpy() == 1)
    axes.plot(columns, rows, "ko", markersize=3.5, markeredgecolor="white", markeredgewidth=0.6)


def difference_caption(data: PlotData) -> str:
    """Say how a map of differences is read, and what its dots are or why it has none."""
    return f"{_DIFFERENCES_HOW_TO_READ} {_DOTS if _is_tested(data) else _NO_DOTS}"


def _is_tested(data: PlotData) -> bool:
    return bool(data.rows["p_max_t"].notna().any())


def _legend(figure: Figure, arms: list[str]) -> None:
    """Add a legend of the arms above the panels, with the figure's title as its own."""
    # The layout makes space for one text above the panels, not for a title and a legend.
    handles = []
    for index, arm in enumerate(arms):
        look: Any = {"color": _colour(index), "linestyle": _dash(index)}
        handles.append(Line2D([], [], label=arm, **look))
    letters = max(map(len, arms)) + 8  # of an entry with its line
    columns = max(1, int(LETTERS * figure.get_figwidth() / letters))
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
    by_run = table["value"].groupby([table["arm"], table["run"], table["step"]])
    # A run without a value at a layer has no mean: the others would shift it.
    values = by_run.agg(lambda numbers: numbers.mean(skipna=False)).unstack("step")
    if draw_no_data(axes, table, values):
        return
    steps = [int(step) for step in values.columns]
    measured = values.index.get_level_values("arm")
    for index, arm in enumerate(arms):
        if arm not in measured:
            continue
        runs = values.loc[arm].to_numpy(dtype=float)
        colour = _colour(index)
        axes.plot(steps, runs.mean(axis=0), color=colour, linestyle=_dash(index), linewidth=1.4)
        if len(runs) > 1:
            low, high = runs.min(axis=0), runs.max(axis=0)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    scale_steps(axes, steps)
    if is_wide(table, values):
        axes.set_yscale("log")


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _dash(index: int) -> Any:
    return _DASHES[index % len(_DASHES)]
