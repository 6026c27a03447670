"""The report: everything in one file, warnings first, nothing unescaped, the same bytes for the same table."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
from pico_analyze import measure, open_run
from pico_analyze.plot.data import display_name
from pico_analyze.report import run as report
from pico_analyze.report.glossary import STATUSES
from pico_analyze.sources.run import Run
from pico_contract.layout import MANIFEST, RunLayout

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements and text of a page, and whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def table_of(run: Run, **asked: Any) -> pd.DataFrame:
    return measure(
        run, **{"metrics": ["per", "condition_number", "cka_debiased"], "components": ["v_proj", "ov_circuit"]} | asked
    )


def page(run: Run, frame: pd.DataFrame | None = None, **asked: Any) -> Page:
    return Page(report.render(run, table_of(run) if frame is None else frame, **asked))


@pytest.fixture
def rename(layout: RunLayout) -> Callable[..., Run]:
    """`rename(name=..., ...)` replaces keys of run.json and opens the run."""

    def change(**keys: Any) -> Run:
        layout.manifest.write_text(json.dumps(json.loads(layout.manifest.read_text()) | keys))
        return open_run(layout.root)

    return change


def test_nothing_outside_the_file_is_asked_for(run: Run) -> None:
    found = page(run)
    assert found.open == []
    addresses = [
        value or ""
        for _, attributes in found.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "data", "action", "poster", "background")
    ]
    assert len(addresses) > 8
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    html = report.render(run, table_of(run))
    outside = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert re.findall(r"https?:|//\w|@import|url\(|fetch\(|XMLHttp", outside) == []


def test_images_are_vector_graphics_that_ask_for_nothing_either(run: Run) -> None:
    images = [str(image["src"]) for image in page(run).all("img")]
    assert len(images) == 1 + 2 * 3 + 1
    for image in images:
        svg = base64.b64decode(image.removeprefix("data:image/svg+xml;base64,")).decode()
        assert svg.startswith("<?xml")
        links = re.findall(r'href="([^"]*)"', svg)
        assert all(link.startswith(("#", "data:image/png")) for link in links)


def test_every_link_has_its_target_and_every_image_its_words(run: Run) -> None:
    found = page(run)
    anchors = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    assert {str(a["href"])[1:] for a in found.all("a")} <= set(anchors)
    assert all(len(image["alt"] or "") > 40 for image in found.all("img"))


def test_the_same_table_gives_the_same_bytes(run: Run) -> None:
    frame = table_of(run)
    assert report.render(run, frame) == report.render(open_run(run.layout.root), frame.copy())


def test_text_is_escaped(rename: Callable[..., Run]) -> None:
    hostile = '<script>alert("x")</script><img src=x onerror=y>'
    run = rename(name=hostile, data={"path": hostile}, message=hostile, status="failed", sessions=[{"host": hostile}])
    found = page(run)
    assert len(found.all("script")) == 1
    assert found.text.count(hostile) >= 5
    assert all(set(image) <= {"src", "alt", "width", "class"} for image in found.all("img"))


def test_a_run_that_is_intact_and_has_every_number_says_so(run: Run) -> None:
    found = page(run, table_of(run, metrics=["per"]))
    assert "Nothing is damaged, and every number that was asked for has a value." in found.text
    assert "Read this first" not in found.text


def test_damage_and_a_failure_come_first(rename: Callable[..., Run], layout: RunLayout) -> None:
    (layout.snapshot(1) / MANIFEST).unlink()
    run = rename(status="failed", message="the loss is not finite")
    with pytest.warns(UserWarning, match="step 1 is left out"):
        frame = table_of(run)
    text = page(run, frame).text
    warnings = text[text.index("Read this first") : text.index("observed steps")]
    assert "the run is failed at step 2 of 2: the loss is not finite" in warnings
    assert f"step 1: {layout.snapshot(1) / MANIFEST} does not exist" in warnings
    assert text.index("does not exist") < text.index("hidden_size")


def test_statuses_are_counted_and_explained_with_their_metrics(run: Run) -> None:
    frame = table_of(run)
    absent = frame[frame["status"] == "rank_deficient"]
    assert len(absent) > 0
    ((status, count, meaning, where),) = report.statuses(frame)
    assert (status, count, meaning) == ("rank_deficient", len(absent), STATUSES["rank_deficient"])
    kinds = absent["kind"].value_counts()
    assert where == ", ".join(f"condition number of {kind} {kinds[kind]}" for kind in sorted(kinds.index))
    assert f"rank_deficient: {len(absent)} numbers. A singular value" in page(run, frame).text


def test_a_status_of_a_later_version_is_counted(run: Run) -> None:
    """A reader of the table copes with a status that it does not know."""
    frame = table_of(run)
    frame.loc[frame.index[0], "status"] = "of_a_later_version"
    found = {status: (count, meaning) for status, count, meaning, _ in report.statuses(frame)}
    count, meaning = found["of_a_later_version"]
    assert count == 1
    assert meaning not in STATUSES.values()


def test_facts_are_those_of_the_manifest(rename: Callable[..., Run]) -> None:
    run = rename(parameters={"total": 1234567, "head": 67}, parent="old@7", seeds={"init": 3})
    facts = dict(report.facts(run))
    assert facts["status"] == "finished at step 2 of 2"
    assert facts["continues from"] == "old@7"
    assert facts["parameters"] == "1,234,567 (head 67)"
    assert facts["seeds"] == "init 3"
    assert facts["observed steps"] == "3: 0, 1, 2"
    assert "hidden_size 16" in facts["model"]


def test_last_values_are_means_over_layers_and_heads_with_what_is_absent_counted(run: Run) -> None:
    frame = table_of(run)
    by_title = {grid.title: grid for grid in report.grids(frame)}
    steps = {"weights": 2, "gradients (val)": 2, "gradients (train)": 1, "activations (val)": 2}
    assert list(by_title) == [f"{of}, step {step}" for of, step in steps.items()]
    assert "debiased CKA" not in by_title["activations (val), step 2"].metrics, "1 by definition"
    grid = by_title["weights, step 2"]
    assert grid.metrics == ["PER", "condition number"]
    rows = {name: dict(zip(grid.metrics, cells, strict=True)) for name, cells in grid.rows}
    here = frame[(frame["kind"] == "weights") & (frame["step"] == 2) & (frame["metric"] == "per")]
    mean = here.loc[here["component"] == "ov_circuit", "value"].mean()
    assert rows["ov_circuit"]["PER"] == report.TableCell(f"{mean:.4g}", pytest.approx(mean))
    assert rows["ov_circuit"]["condition number"] == report.TableCell("–", None, "0 of 8")
    assert rows["self_attn.v_proj"]["condition number"].of == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.56, "1235"), (123456.0, "1.235e5"), (-0.0000314159, "-3.142e-5"), (1e10, "1e10")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert report.number(value) == text


def test_a_metric_of_the_users_own_needs_no_words(run: Run) -> None:
    def trace(x: Any) -> float:
        return float(x.diagonal().sum()) if x.ndim == 2 else 0.0

    frame = measure(run, metrics=[trace], components=["q_proj"], kinds=["weights"])
    assert report.definitions(frame) == [("trace", "", "a metric of your own", "")]
    found = page(run, frame, metrics=["trace"])
    assert [figure["id"] for figure in found.all("figure")] == [
        f"weights_trace_{f}" for f in ("lines", "map", "layers")
    ]


def test_without_figures_it_says_why(run: Run) -> None:
    found = page(run, metrics=[])
    assert found.all("img") == []
    assert "pico-analyze plot --metric draws others" in found.text


def test_heads_are_drawn_where_asked_for(run: Run) -> None:
    found = page(run, table_of(run, kinds=["weights"]), metrics=["per"], heads=True)
    forms = ("lines", "map", "heads", "layers")
    assert [figure["id"] for figure in found.all("figure")] == [f"weights_per_{form}" for form in forms]


def test_it_fits_a_phone_and_a_sheet_of_paper(run: Run) -> None:
    html = report.render(run, table_of(run), metrics=["per"])
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "@media print" in html
    tables = [html[: table.start()].splitlines()[-1] for table in re.finditer(r"<table", html)]
    assert len(tables) == 4 + 1
    assert all(line.startswith('<div class="scroll"') for line in tables), "a wide table scrolls, not the page"


def test_many_metrics_stand_in_several_tables_that_fit_a_page(run: Run) -> None:
    frame = measure(run, components=["v_proj"], kinds=["weights"])
    grids = report.grids(frame)
    assert [grid.title for grid in grids] == ["weights, step 2 (1 of 2)", "weights, step 2 (2 of 2)"]
    assert max(len(grid.metrics) for grid in grids) <= 12
    everything = [metric for grid in grids for metric in grid.metrics]
    of_one_step = frame.loc[frame["reference_step"].isna(), "metric"]
    assert everything == [display_name(metric) for metric in of_one_step.unique()]
    assert all(len(cells) == len(grid.metrics) for grid in grids for _, cells in grid.rows)
