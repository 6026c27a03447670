"""report.html of a run: what it is, what is wrong, what was measured and how it went.

Everything is in one file (figures as data, style and script inline): no request is made, and
without JavaScript only the sorting of tables is gone. The same table and run give the same bytes.
The page's layout is in `templates/`, captions of figures are in `plot/figures.py`, and the words
for metrics and statuses in `glossary.py`.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd

from pico_analyze.metrics.registry import METRICS
from pico_analyze.plot import panels
from pico_analyze.plot.data import between, display_name, unit_of
from pico_analyze.plot.figures import draw_figures
from pico_analyze.report import glossary
from pico_analyze.sources.base import Source
from pico_analyze.sources.model_config import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 2
"""Panels side by side: legible on a phone and on a printed page."""
# A p at most this large counts as unlikely by chance.
_UNLIKELY = 0.05
# Side by side in a table: as many as a page of paper and a desktop's window show.
_MOST_METRICS = 12
# Of CSS, to the inch.
_PIXELS = 96


@dataclass(frozen=True)
class Picture:
    """A figure of the report: the target of links, its image as a data address, and its words."""

    anchor: str
    title: str
    image: str
    caption: str
    width: int


@dataclass(frozen=True)
class TableCell:
    """The mean of one metric over the layers and heads of a component.

    `of` says how many have a value, unless all have.
    """

    text: str
    value: float | None = None
    of: str = ""


@dataclass(frozen=True)
class Grid:
    """The last values of one kind and split: a row a component, a column a metric.

    Attributes:
        title: kind, split and step.
        metrics: their display names.
        units: of each metric; "" for a plain number.
        rows: (component, its cells).
    """

    title: str
    metrics: list[str]
    units: list[str]
    rows: list[tuple[str, list[TableCell]]]


def render(
    source: Source,
    frame: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    heads: bool = False,
) -> str:
    """Render the report of a measurement `frame` of `source` as HTML.

    Figures are of `metrics`, a telling few by default.
    """
    return fill(
        "report.html.j2",
        name=source.name,
        facts=facts(source),
        sessions=sessions(source),
        warnings=warnings_of(source),
        statuses=statuses(frame),
        measured=measured(frame),
        definitions=definitions(frame),
        circuits=circuits(frame),
        grids=grids(frame),
        pictures=pictures(frame, metrics, heads),
    )


def fill(template: str, **values: Any) -> str:
    """Fill one of the templates of this room, every text escaped."""
    templates = files("pico_analyze").joinpath("report", "templates")

    def load(name: str) -> str:
        return templates.joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A misspelt name in a template is an error, not an empty place.
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def facts(source: Source) -> list[tuple[str, str]]:
    """List what is known of the run as (name, value).

    They come from run.json; a source without one knows only its geometry and steps.
    """
    manifest = getattr(source, "manifest", None)
    geometry = describe(source.model)
    steps = f"{len(source.steps)}: {', '.join(map(str, source.steps))}"
    if manifest is None:
        return [("model", geometry), ("observed steps", steps)]
    rows = [
        ("status", f"{manifest.status} at step {manifest.step} of {manifest.total_steps}"),
        ("created", manifest.created),
        ("continues from", manifest.parent or ""),
        ("method", manifest.method),
        ("model", geometry),
        ("parameters", _parameters(manifest.parameters)),
        ("data", _plain(manifest.data)),
        ("seeds", ", ".join(f"{key} {value}" for key, value in manifest.seeds.items())),
        ("observed steps", steps),
    ]
    # A run from scratch continues from nothing, for example.
    return [(name, value) for name, value in rows if value]


def _parameters(counts: Mapping[str, int]) -> str:
    parts = ", ".join(f"{key} {count:,}" for key, count in counts.items() if key != "total")
    total = counts.get("total")
    return f"{total:,} ({parts})" if total else parts


def sessions(source: Source) -> list[dict[str, str]]:
    """List each start of the run as key -> text; [] if the source does not record them."""
    manifest = getattr(source, "manifest", None)
    if not manifest:
        return []
    return [
        {key: _plain(value) for key, value in session.items()} for session in manifest.sessions
    ]


def warnings_of(source: Source) -> list[str]:
    """List what a reader should know first: a run that did not finish, and damage."""
    sentences = []
    manifest = getattr(source, "manifest", None)
    if manifest is not None and manifest.status != "finished":
        reason = f": {manifest.message}" if manifest.message else ""
        place = f"at step {manifest.step} of {manifest.total_steps}"
        sentences.append(f"the run is {manifest.status} {place}{reason}")
    for step, damages in source.damaged.items():
        sentences += [f"step {step}: {damage}" for damage in damages]
    return sentences


def statuses(frame: pd.DataFrame) -> list[tuple[str, int, str, str]]:
    """Count the statuses other than ok, most frequent first.

    Returns:
        (status, count, its meaning, how often in which metric of which kind) of each.
    """
    absent = frame[frame["status"] != "ok"]
    rows = [_count(str(status), table) for status, table in absent.groupby("status")]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _count(status: str, rows: pd.DataFrame) -> tuple[str, int, str, str]:
    metrics = rows["metric"].map(display_name)
    names = metrics + " of " + rows["kind"]
    counts = names.value_counts(sort=False).sort_index()
    where = ", ".join(f"{name} {count}" for name, count in counts.items())
    return status, len(rows), glossary.meaning(status), where


def measured(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """List what was measured as (name, value)."""
    absent = int((frame["status"] != "ok").sum())
    kinds = frame[["kind", "split"]].drop_duplicates().itertuples(index=False, name=None)
    rows = [
        ("numbers", f"{len(frame):,}, of which {absent:,} have a status other than ok"),
        ("kinds", ", ".join(_kind_and_split(kind, split) for kind, split in kinds)),
        ("components", ", ".join(frame["component"].unique())),
        ("steps", ", ".join(map(str, sorted(frame["step"].unique())))),
    ]
    p = frame["p"].dropna()
    if len(p):
        rows.append(("null", _null(p)))
    return rows


def _null(p: pd.Series) -> str:
    """Say how many similarities a permutation null makes unlikely, and how many it would by chance."""
    unlikely = int((p <= _UNLIKELY).sum())
    expected = round(_UNLIKELY * len(p))
    return (
        f"of {len(p):,} similarities {unlikely:,} have p at most {_UNLIKELY}, where the probe rows "
        f"of the reference are permuted; if nothing were alike, about {expected:,} would in the mean "
        "over experiments, and mostly together, since all share their rows"
    )


def definitions(frame: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """List (name, unit, definition, how to read it) of each metric in the table."""
    rows = []
    for name, table in frame.groupby("metric", sort=False):
        metric = METRICS.get(str(name))
        if metric:
            unit = metric.unit
            docstring = metric.fn.__doc__ or ""
            text = " ".join(docstring.split())
        else:
            unit = next(iter(table["unit"].dropna()), "")
            text = "a metric of your own"
        rows.append((display_name(str(name)), unit, text, glossary.reading(str(name))))
    return rows


def circuits(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """List (name, meaning) of each component in the table that is made of several matrices."""
    names = dict.fromkeys(str(name).rpartition(".")[2] for name in frame["component"].unique())
    meanings = [(name, glossary.component(name)) for name in names]
    return [(name, meaning) for name, meaning in meanings if meaning]


def grids(frame: pd.DataFrame) -> list[Grid]:
    """Tabulate the values of each kind's last step by component, means over layers and heads.

    Similarities of the last step to itself are left out, since they are 1 by definition, and so are
    metrics with several references, of which no one number is telling.
    """
    tables = []
    # Weights have no split: a null key is a group, too.
    for (kind, split), rows in frame.groupby(["kind", "split"], sort=False, dropna=False):
        step = rows["step"].max()
        last = _values_of_step(rows, step)
        metrics = _metrics_with_one_reference(rows, last)
        title = f"{_kind_and_split(kind, split)}, step {step}"
        if metrics:
            tables += _grids_of(title, last, metrics)
    return tables


def _values_of_step(rows: pd.DataFrame, step: int) -> pd.DataFrame:
    """Select the rows of a step, without those that compare it with itself."""
    # -1 is not a step: rows without a reference stay.
    same_run = rows["reference_run"].fillna(rows["run"]) == rows["run"]
    to_itself = same_run & (rows["reference_step"].fillna(-1) == step)
    return rows[(rows["step"] == step) & ~to_itself]


def _metrics_with_one_reference(rows: pd.DataFrame, last: pd.DataFrame) -> list[str]:
    names = [str(name) for name in last["metric"].unique()]
    return [name for name in names if between(rows[rows["metric"] == name]) is None]


def _grids_of(title: str, last: pd.DataFrame, metrics: list[str]) -> list[Grid]:
    """Split the metrics of one kind and split into as many grids as fit a page."""
    cells = _cells(last)
    tables = []
    parts = _parts(metrics)
    for number, part in enumerate(parts, start=1):
        numbered = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
        tables.append(_grid(f"{title}{numbered}", part, last, cells))
    return tables


def _cells(last: pd.DataFrame) -> dict[Any, TableCell]:
    """Map (component, metric) to its cell."""
    groups = last.groupby(["component", "metric"])["value"]
    return {key: _mean_cell(values) for key, values in groups}


def _grid(
    title: str, metrics: Sequence[str], last: pd.DataFrame, cells: Mapping[Any, TableCell]
) -> Grid:
    names = [display_name(metric) for metric in metrics]
    units = [unit_of(last[last["metric"] == metric]) for metric in metrics]
    # A metric that is not defined for a component leaves its cell empty.
    empty = TableCell("")
    rows = []
    for component in last["component"].unique():
        row = [cells.get((component, metric), empty) for metric in metrics]
        rows.append((str(component), row))
    return Grid(title, names, units, rows)


def _parts(metrics: Sequence[str]) -> list[Sequence[str]]:
    """Split metrics into as few parts of at most `_MOST_METRICS` as possible, about equally long."""
    count = max(1, math.ceil(len(metrics) / _MOST_METRICS))
    bounds = [round(i * len(metrics) / count) for i in range(count + 1)]
    return [metrics[start:end] for start, end in pairwise(bounds)]


def pictures(
    frame: pd.DataFrame, metrics: Sequence[str] | None, heads: bool
) -> Iterator[Picture]:
    """Yield the figures, one at a time, each with its title and caption."""
    for drawn in draw_figures(frame, metrics, heads, COLUMNS):
        metric = drawn.subject.metric if drawn.subject else None
        caption = glossary.caption(drawn.how_to_read, metric)
        yield picture(drawn.stem, drawn.title, drawn.figure, caption)


def picture(anchor: str, title: str, figure: Figure, caption: str) -> Picture:
    """Draw a figure as a vector graphic for the page."""
    buffer = io.BytesIO()
    # Vector graphics stay sharp on paper and when enlarged.
    panels.write(figure, buffer, "svg")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    width = round(_PIXELS * figure.get_figwidth())
    return Picture(anchor, title, f"data:image/svg+xml;base64,{encoded}", caption, width)


def _mean_cell(values: pd.Series) -> TableCell:
    """Average the values that are known; a dash if none is."""
    known = values.dropna()
    of = "" if len(known) == len(values) else f"{len(known)} of {len(values)}"
    if known.empty:
        return TableCell("\N{EN DASH}", None, of)
    mean = float(known.mean())
    return TableCell(number(mean), mean, of)


def number(value: float, form: str = "{:.4g}") -> str:
    """Write a number with four digits, and its power of ten without padding: 3.2e-5."""
    digits, _, power = form.format(value).partition("e")
    return f"{digits}e{int(power)}" if power else digits


def _kind_and_split(kind: Any, split: Any) -> str:
    return str(kind) if pd.isna(split) else f"{kind} ({split})"


def _plain(value: Any) -> str:
    """Write a value of run.json without brackets and quotes."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)
