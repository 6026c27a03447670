"""report.html of a comparison: what to know before believing it, the arms over each other, and how
far they differ."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pico_analyze.compare.arms import Arm
from pico_analyze.compare.differences import curves
from pico_analyze.compare.notes import notes
from pico_analyze.plot import arms as plot_arms
from pico_analyze.plot.data import PlotData, all_plot_data
from pico_analyze.report import glossary
from pico_analyze.report.run import COLUMNS, Picture, TableCell, facts, fill, number, picture

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
_INTERVALS = {"student_pairs": "Student, pairs", "welch": "Welch", "bootstrap": "bootstrap"}
Rows = list[tuple[str, list[TableCell]]]


@dataclass(frozen=True)
class ReportPart:
    """One metric of one kind and split: its figures, and for each arm the means over steps."""

    anchor: str
    title: str
    pictures: list[Picture]
    tables: list[tuple[str, Sequence[str], Rows]]


def render(
    arms: Sequence[Arm], differences: pd.DataFrame, metrics: Sequence[str] | None = None
) -> str:
    """The comparison as HTML, with figures of `metrics` (a telling few by default); the same input,
    the same bytes."""
    return fill(
        "compare.html.j2",
        baseline=arms[0].name,
        arms=[arm.name for arm in arms[1:]],
        notes=notes(arms, differences),
        runs=list(runs(arms)),
        parts_of=[_part(shown, differences) for shown in plotted(arms, metrics)],
    )


def runs(arms: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    """(arm, run, status, seeds, tokens at its last step, method) of every run."""
    for arm in arms:
        for run in arm.runs:
            known = dict(facts(run))
            tokens = run.tokens(run.steps[-1]) if run.steps else None
            said = "" if tokens is None else f"{tokens:,}"
            yield (
                arm.name,
                run.name,
                known.get("status", ""),
                known.get("seeds", ""),
                said,
                known.get("method", ""),
            )


def plotted(arms: Sequence[Arm], metrics: Sequence[str] | None) -> list[PlotData]:
    """What is drawn over steps: the subjects of the first run's table, with the curves of every
    run."""
    every = curves(arms)
    return [
        select(every, shown)
        for shown in all_plot_data(arms[0].tables[0], metrics)
        if shown.between is None
    ]


def select(frame: pd.DataFrame, shown: PlotData) -> PlotData:
    """The rows of `frame` that are of what `shown` is of."""
    rows = frame[(frame["metric"] == shown.metric) & (frame["kind"] == shown.kind)]
    rows = rows if shown.split is None else rows[rows["split"] == shown.split]
    return PlotData(rows, shown.metric, shown.kind, shown.split)


def by_step(differences: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The differences of one arm at the single steps, as a table of values."""
    rows = differences[(differences["arm"] == arm) & differences["step"].notna()]
    return rows.assign(value=rows["difference"])


def _part(shown: PlotData, differences: pd.DataFrame) -> ReportPart:
    title = f"{shown.quantity}: {shown.object}"
    caption = glossary.caption(plot_arms.OVERLAY_HOW_TO_READ, shown.metric)
    pictures = [
        picture(
            f"{shown.stem}_overlay", "Arms over steps", plot_arms.overlay(shown, COLUMNS), caption
        )
    ]
    tables: list[tuple[str, Sequence[str], Rows]] = []
    for index, arm in enumerate(differences["arm"].unique()):
        at_steps = select(by_step(differences, arm), shown)
        if at_steps.rows.empty:
            continue  # the arm was not measured so
        figure = plot_arms.difference_map(at_steps, COLUMNS)
        caption = plot_arms.difference_caption(at_steps)
        pictures.append(
            picture(f"{shown.stem}_difference_{index}", f"Difference of {arm}", figure, caption)
        )
        rows = differences[(differences["arm"] == arm) & differences["step"].isna()]
        tables.append((f"{arm} less the baseline", _HEADINGS, _rows(select(rows, shown).rows)))
    return ReportPart(shown.stem, title, pictures, tables)


def _rows(means: pd.DataFrame) -> Rows:
    found = []
    for row in means.to_dict("records"):
        numbers = [
            _cell(row["layer"], "{:.0f}"),
            _cell(row["baseline_mean"]),
            _cell(row["arm_mean"]),
            _cell(row["difference"]),
            _cell(row["relative"], "{:.1%}"),
            *(_cell(row[key]) for key in ("low", "high")),
            _cell(row["effect_size"], "{:.2f}"),
            TableCell(_interval_name(row)),
        ]
        found.append((str(row["component"]), numbers))
    return found


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
