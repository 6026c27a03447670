"""report.html: what a run is, what is wrong, what was measured and how it went, in one file that
opens anywhere.

Everything is in the file (figures as data, style and script inline): no request is made, and
without JavaScript only the sorting of tables is gone. The same table and run give the same bytes.
"""

from __future__ import annotations

import base64
import io
import json
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

_UNLIKELY = 0.05
COLUMNS = 2  # panels side by side: legible on a phone and on a printed page
_WIDEST = 12  # metrics side by side that a page of paper and a desktop's window show


@dataclass(frozen=True)
class Picture:
    """A figure of the report: where it is linked from, its image as a data address, and how it is
    read."""

    anchor: str
    title: str
    image: str
    caption: str
    width: int


@dataclass(frozen=True)
class TableCell:
    """Mean of one metric over the layers and heads of a component; `of` says how many have a value,
    where not all."""

    text: str
    value: float | None = None
    of: str = ""


@dataclass(frozen=True)
class Grid:
    """Last values of one kind and split: a row a component, a column a metric."""

    title: str
    metrics: list[str]
    units: list[str]  # of each metric, "" where it has none
    rows: list[tuple[str, list[TableCell]]]


def render(
    source: Source, frame: pd.DataFrame, metrics: Sequence[str] | None = None, heads: bool = False
) -> str:
    """The report of a measurement `frame` of `source` as HTML, with figures of `metrics` (a telling
    few by default)."""
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
    """A page from one of the templates of this room, every text escaped."""
    templates = files("pico_analyze").joinpath("report", "templates")
    beside = jinja2.FunctionLoader(
        lambda name: templates.joinpath(name).read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        loader=beside,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def facts(source: Source) -> list[tuple[str, str]]:
    """What the run is, as (what, value): from run.json where the source has one, else what any
    source can say."""
    manifest = getattr(source, "manifest", None)
    geometry = describe(source.model)
    steps = f"{len(source.steps)}: {', '.join(map(str, source.steps))}"
    if manifest is None:
        return [("model", geometry), ("observed steps", steps)]
    counts = dict(manifest.parameters)
    total = counts.pop("total", None)
    parts = ", ".join(f"{key} {value:,}" for key, value in counts.items())
    found = [
        ("status", f"{manifest.status} at step {manifest.step} of {manifest.total_steps}"),
        ("created", manifest.created),
        ("continues from", manifest.parent or ""),
        ("method", manifest.method),
        ("model", geometry),
        ("parameters", f"{total:,} ({parts})" if total else parts),
        ("data", ", ".join(f"{key} {_plain(value)}" for key, value in manifest.data.items())),
        ("seeds", ", ".join(f"{key} {value}" for key, value in manifest.seeds.items())),
        ("observed steps", steps),
    ]
    return [(what, value) for what, value in found if value]


def sessions(source: Source) -> list[dict[str, str]]:
    """Each start of the run as key -> text; [] where the source does not record them."""
    manifest = getattr(source, "manifest", None)
    return (
        [{key: _plain(value) for key, value in session.items()} for session in manifest.sessions]
        if manifest
        else []
    )


def warnings_of(source: Source) -> list[str]:
    """What a reader should know first: damage, and a run that did not finish."""
    found = [
        f"step {step}: {sentence}"
        for step, damages in source.damaged.items()
        for sentence in damages
    ]
    manifest = getattr(source, "manifest", None)
    if manifest is not None and manifest.status != "finished":
        why = f": {manifest.message}" if manifest.message else ""
        found.insert(
            0,
            f"the run is {manifest.status} at step {manifest.step} of {manifest.total_steps}{why}",
        )
    return found


def statuses(frame: pd.DataFrame) -> list[tuple[str, int, str, str]]:
    """(status, count, what it means, which metrics of which kinds) of all that is not ok, most
    frequent first."""
    absent = frame[frame["status"] != "ok"]
    found = []
    for status, rows in absent.groupby("status"):
        of = (
            (rows["metric"].map(display_name) + " of " + rows["kind"])
            .value_counts(sort=False)
            .sort_index()
        )
        where = ", ".join(f"{what} {count}" for what, count in of.items())
        found.append((str(status), len(rows), glossary.meaning(str(status)), where))
    return sorted(found, key=lambda one: (-one[1], one[0]))


def measured(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """What was measured, as (what, value)."""
    kinds = frame[["kind", "split"]].drop_duplicates().itertuples(index=False, name=None)
    found = [
        (
            "numbers",
            f"{len(frame):,}, of which {int((frame['status'] != 'ok').sum()):,} have a status other than ok",
        ),
        ("kinds", ", ".join(_of(kind, split) for kind, split in kinds)),
        ("components", ", ".join(frame["component"].unique())),
        ("steps", ", ".join(map(str, sorted(frame["step"].unique())))),
    ]
    return found + ([("null", _null(frame["p"].dropna()))] if frame["p"].notna().any() else [])


def _null(p: pd.Series) -> str:
    """How many similarities a permutation null leaves standing."""
    return (
        f"of {len(p):,} similarities {int((p <= _UNLIKELY).sum()):,} have p at most {_UNLIKELY}, where the probe rows "
        f"of the reference are permuted; if nothing were alike, about {round(_UNLIKELY * len(p)):,} would in the mean "
        "over experiments, and mostly together, since all share their rows"
    )


def definitions(frame: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """(name, unit, definition, what it says) of each metric in the table."""
    found = []
    for name, rows in frame.groupby("metric", sort=False):
        metric = METRICS.get(str(name))
        text = " ".join((metric.fn.__doc__ or "").split()) if metric else "a metric of your own"
        unit = metric.unit if metric else next(iter(rows["unit"].dropna()), "")
        found.append((display_name(str(name)), unit, text, glossary.reading(str(name))))
    return found


def circuits(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(name, what it is) of each component in the table that is made of several matrices."""
    found = dict.fromkeys(str(name).rpartition(".")[2] for name in frame["component"].unique())
    return [(name, glossary.component(name)) for name in found if glossary.component(name)]


def grids(frame: pd.DataFrame) -> list[Grid]:
    """The values of each kind's last step by component, each the mean over layers and heads of
    those that have one.

    Without similarities of the last step to itself, which are 1 by definition, and without those to
    several steps or layers, of which no one number is telling.
    """
    found = []
    for (kind, split), rows in frame.groupby(["kind", "split"], sort=False, dropna=False):
        step = rows["step"].max()
        own = rows["reference_run"].fillna(rows["run"]) == rows["run"]
        to_itself = (rows["reference_step"].fillna(-1) == step) & own
        last = rows[(rows["step"] == step) & ~to_itself]
        metrics = [
            str(metric)
            for metric in last["metric"].unique()
            if between(rows[rows["metric"] == metric]) is None
        ]
        if not metrics:
            continue
        cells = {
            key: _cell(values) for key, values in last.groupby(["component", "metric"])["value"]
        }
        parts = _parts(metrics)
        for number, some in enumerate(parts, start=1):
            by_component = [
                (str(name), [cells.get((name, metric), TableCell("")) for metric in some])
                for name in last["component"].unique()
            ]
            of = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            title = f"{_of(kind, split)}, step {step}{of}"
            units = [unit_of(last[last["metric"] == metric]) for metric in some]
            found.append(
                Grid(title, [display_name(metric) for metric in some], units, by_component)
            )
    return found


def _parts(metrics: Sequence[str]) -> list[Sequence[str]]:
    """As few as hold `_WIDEST` each, of about one length."""
    count = max(1, -(-len(metrics) // _WIDEST))
    bounds = [round(i * len(metrics) / count) for i in range(count + 1)]
    return [metrics[start:end] for start, end in pairwise(bounds)]


def pictures(frame: pd.DataFrame, metrics: Sequence[str] | None, heads: bool) -> Iterator[Picture]:
    """Yield the figures, one at a time, each with its title and caption."""
    for drawn in draw_figures(frame, metrics, heads, COLUMNS):
        metric = drawn.subject.metric if drawn.subject else None
        caption = glossary.caption(drawn.how_to_read, metric)
        yield picture(drawn.stem, drawn.title, drawn.figure, caption)


def picture(anchor: str, title: str, figure: Figure, caption: str) -> Picture:
    """A figure as it stands in the page."""
    buffer = io.BytesIO()
    panels.write(figure, buffer, "svg")
    image = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(anchor, title, image, caption, round(96 * figure.get_figwidth()))


def _cell(values: pd.Series) -> TableCell:
    known = values.dropna()
    of = "" if len(known) == len(values) else f"{len(known)} of {len(values)}"
    if known.empty:
        return TableCell("\N{EN DASH}", None, of)
    return TableCell(number(float(known.mean())), float(known.mean()), of)


def number(value: float, form: str = "{:.4g}") -> str:
    """Four digits, and powers of ten without what they do not need: 3.2e-5."""
    digits, _, power = form.format(value).partition("e")
    return f"{digits}e{int(power)}" if power else digits


def _of(kind: Any, split: Any) -> str:
    return str(kind) if pd.isna(split) else f"{kind} ({split})"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)
