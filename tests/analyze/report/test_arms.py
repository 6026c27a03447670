"""The report of a comparison: notes first, means over steps, everything escaped."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from pico_analyze.commands.compare import open_arms
from pico_analyze.compare import compare
from pico_analyze.report import arms as report_arms
from pico_contract.layout import RunLayout


def groups(runs: list[Path]) -> dict[str, list[Path]]:
    return {"full": runs[:2], "low": runs[2:]}


def test_the_report_is_one_file_with_notes_first_and_everything_escaped(runs: list[Path]) -> None:
    manifest = RunLayout(runs[2]).manifest
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"name": "<script>alert(1)</script>"}))
    arms = open_arms([], {"full": runs[:2], "<b>low": runs[2:]}, "default")
    differences = compare(arms)
    html = report_arms.render(arms, differences)
    assert html == report_arms.render(arms, differences)
    assert html.count("<script>") == 1
    assert "&lt;b&gt;low against full" in html
    assert html.index("Read this first") < html.index("The runs</h2>") < html.index("data:image/svg")
    assert re.findall(r"https?:|src=\"(?!data:)|@import|url\(", html) == []
    assert html.count("<img") == 2
    for image in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html):
        assert base64.b64decode(image).startswith(b"<?xml")


def test_the_table_of_the_report_is_of_the_means_over_steps(runs: list[Path]) -> None:
    arms = open_arms([], groups(runs), "default")
    differences = compare(arms)
    (part,) = [report_arms._part(shown, differences) for shown in report_arms.plotted(arms, None)]
    ((title, headings, rows),) = part.tables
    assert title == "low less the baseline"
    assert [name for name, _ in rows] == ["self_attn.v_proj"] * 2
    means = differences[differences["step"].isna()]
    by_heading = dict(zip(headings[1:], rows[0][1], strict=True))
    assert by_heading["difference"].value == means["difference"].iloc[0]
    assert by_heading["interval"].text == "Student, pairs, df 1"
    assert by_heading["layer"].text == "0"
    assert by_heading["relative"].text == "2.0%"


def test_tables_have_no_marks_and_say_that_intervals_are_not_adjusted(runs: list[Path]) -> None:
    arms = open_arms([], groups(runs), "default")
    html = report_arms.render(arms, compare(arms))
    assert "is not adjusted for how many there are" in html
    assert "No cell is marked" in html
    assert "<strong>" not in html
    assert "by chance" not in html
