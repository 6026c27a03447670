"""report.html of a comparison: notes, the arms over each other, and how far they differ."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pico_analyze.compare.arms import Arm
from pico_analyze.compare.differences import curves
from pico_analyze.compare.notes import notes
from pico_analyze.plot import arms as plot_arms
from pico_analyze.plot.data import PlotData, all_plot_data, rows_of
from pico_analyze.report import glossary
from pico_analyze.report.run import COLUMNS, Picture, TableCell, facts, fill, number, picture
from pico_analyze.sources.base import Source

_HEADINGS = (
    "component",
    "layer",
    "baseline",
    "arm",
    "difference",
    "relative",
    "low",
    "high",
    "effect size",
    "interval",
)
# Name in the column `interval` -> words.
_INTERVALS = {"student_pairs": "Student, pairs", "welch": "Welch", "bootstrap": "bootstrap"}
Rows = list[tuple[str, list[TableCell]]]
"""(component, its cells) of each row."""


@dataclass(frozen=True)
class ReportPart:
    """One metric of one kind and split: its figures, and a table for each arm.

    Attributes:
        anchor: the target of links to it.
        title: the metric, its unit, and what was measured.
        pictures: the arms over steps, then the map of each arm's differences.
        tables: (title, headings, rows) of each arm's means over steps.
    """

    anchor: str
    title: str
    pictures: list[Picture]
    tables: list[tuple[str, Sequence[str], Rows]]


def render(
    arms: Sequence[Arm], differences: pd.DataFrame, metrics: Sequence[str] | None = None
) -> str:
    """Render the comparison as HTML, with figures of `metrics`, a telling few by default.

    The same input gives the same bytes.
    """
    return fill(
        "compare.html.j2",
        baseline=arms[0].name,
        arms=[arm.name for arm in arms[1:]],
        notes=notes(arms, differences),
        runs=list(runs(arms)),
        parts_of=[_part(data, differences) for data in plotted(arms, metrics)],
    )


def runs(arms: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """Yield (arm, run, status, seeds, tokens at its last step, method) of every run."""
    for arm in arms:
        for run in arm.runs:
            yield arm.name, *_run_cells(run)


def _run_cells(run: Source) -> tuple[str, ...]:
    known = dict(facts(run))
    count = run.tokens(run.steps[-1]) if run.steps else None
    tokens = "" if count is None else f"{count:,}"
    status, seeds = known.get("status", ""), known.get("seeds", "")
    return run.name, status, seeds, tokens, known.get("method", "")


def plotted(arms: Sequence[Arm], metrics: Sequence[str] | None) -> list[PlotData]:
    """List what is drawn over steps: the metrics of the first run's table, with every run's curves.

    Metrics with several references are left out.
    """
    every = curves(arms)
    drawable = all_plot_data(arms[0].tables[0], metrics)
    return [select(every, data) for data in drawable if data.between is None]


def select(frame: pd.DataFrame, data: PlotData) -> PlotData:
    """Select the rows of `frame` of the same metric, kind and split as `data`."""
    rows = rows_of(frame, data.metric, data.kind, data.split)
    return PlotData(rows, data.metric, data.kind, data.split)


def by_step(differences: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Select the differences of one arm at the single steps, as a table of values."""
    rows = differences[(differences["arm"] == arm) & differences["step"].notna()]
    return rows.assign(value=rows["difference"])


def _part(data: PlotData, differences: pd.DataFrame) -> ReportPart:
    title = f"{data.quantity}: {data.object}"
    # The arms over each other come first: a difference is read against its size.
    pictures = [_overlay(data)]
    tables: list[tuple[str, Sequence[str], Rows]] = []
    for index, arm in enumerate(differences["arm"].unique()):
        steps = select(by_step(differences, arm), data)
        # An arm need not have been measured by every metric of the baseline.
        if steps.rows.empty:
            continue
        pictures.append(_difference(steps, f"{data.stem}_difference_{index}", arm))
        rows = _rows(_means_over_steps(differences, arm, data))
        heading = f"{arm} less the baseline"
        tables.append((heading, _HEADINGS, rows))
    return ReportPart(data.stem, title, pictures, tables)


def _overlay(data: PlotData) -> Picture:
    figure = plot_arms.overlay(data, COLUMNS)
    caption = glossary.caption(plot_arms.OVERLAY_HOW_TO_READ, data.metric)
    return picture(f"{data.stem}_overlay", "Arms over steps", figure, caption)


def _difference(steps: PlotData, anchor: str, arm: str) -> Picture:
    figure = plot_arms.difference_map(steps, COLUMNS)
    caption = plot_arms.difference_caption(steps)
    return picture(anchor, f"Difference of {arm}", figure, caption)


def _means_over_steps(differences: pd.DataFrame, arm: str, data: PlotData) -> pd.DataFrame:
    rows = differences[(differences["arm"] == arm) & differences["step"].isna()]
    return select(rows, data).rows


def _rows(means: pd.DataFrame) -> Rows:
    """Make a row of cells, in the order of `_HEADINGS`, of each component and layer."""
    rows = []
    for row in means.to_dict("records"):
        cells = [
            _cell(row["layer"], "{:.0f}"),
            _cell(row["baseline_mean"]),
            _cell(row["arm_mean"]),
            _cell(row["difference"]),
            _cell(row["relative"], "{:.1%}"),
            _cell(row["low"]),
            _cell(row["high"]),
            _cell(row["effect_size"], "{:.2f}"),
            TableCell(_interval_name(row)),
        ]
        rows.append((str(row["component"]), cells))
    return rows


def _interval_name(row: Mapping[Hashable, Any]) -> str:
    """Name the method of an interval with its degrees of freedom, or say why there is none."""
    if pd.isna(row["interval"]):
        return f"none ({row['status']})"
    name = _INTERVALS[row["interval"]]
    return name if pd.isna(row["df"]) else f"{name}, df {row['df']:.3g}"


def _cell(value: float, form: str = "{:.4g}") -> TableCell:
    if pd.isna(value):
        return TableCell("\N{EN DASH}")
    return TableCell(number(value, form), float(value))
