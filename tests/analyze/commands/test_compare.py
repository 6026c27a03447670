"""`compare` from the command line to the page: what is written, what is said, what is refused."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pico_analyze.commands.compare import open_arms, parse_groups
from pico_analyze.compare import compare
from pico_analyze.plot import arms as plot_arms
from pico_analyze.report import arms as report_arms
from pico_analyze.table import read
from pico_contract.errors import UserError
from pico_contract.layout import AnalysisLayout, RunLayout

from ...support.command_line import Command


@pytest.fixture
def runs(command: Command, layout: RunLayout, tmp_path: Path) -> list[Path]:
    """Four measured runs, seeds 0 and 1 of two arms; the PER of the last two is 1, 2, ... percent larger by step."""
    command("run", layout.root, "metrics=[per]", "components=[v_proj]", "kinds=[weights]", "figures.metrics=[]")
    found = []
    for index in range(4):
        root = tmp_path / f"run{index}"
        shutil.copytree(layout.root, root)
        manifest = json.loads(layout.manifest.read_text()) | {"name": root.name, "seeds": {"init": index % 2}}
        RunLayout(root).manifest.write_text(json.dumps(manifest))
        place = RunLayout(root).analysis("default").table
        frame = read(place)
        frame["value"] *= 1 + 0.01 * (frame["step"] + 1) * (index // 2) + 0.001 * (index % 2)
        frame.to_parquet(place, index=False)
        found.append(root)
    return found


def groups(runs: list[Path]) -> dict[str, list[Path]]:
    return {"full": runs[:2], "low": runs[2:]}


def test_groups_are_compared_drawn_and_reported(command: Command, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["--group", f"full={runs[0]},{runs[1]}", "--group", f"low={runs[2]},{runs[3]}"]
    code, stdout, err = command("compare", *given, "--out", out)
    assert code == 0
    place = AnalysisLayout(out)
    figures = [place.figures / f"weights_per_{form}.png" for form in ("overlay", "difference_1")]
    written = [Path(line) for line in stdout.splitlines()]
    assert written == [place.table, place.table_csv, *figures, place.report]
    assert {path for path in out.rglob("*") if path.is_file()} == set(written)
    found = pd.read_parquet(place.table)
    assert found.loc[found["step"] == 2, "relative"].tolist() == pytest.approx([0.03 / 1.0005] * 2)
    assert found["low"].tolist() == pytest.approx(found["difference"].tolist()), "both pairs differ by as much"
    assert set(found["df"]) == {1}
    assert "8 intervals have no width" in err
    assert found["paired"].all()
    assert len(pd.read_csv(place.table_csv)) == len(found) == 2 * (3 + 1)
    assert "Two runs leave one degree of freedom" in err


def test_runs_alone_are_arms_called_by_their_names(command: Command, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, err = command("compare", runs[0], runs[2], runs[3], "--out", out, "--format", "svg,pdf")
    assert code == 0
    assert 'note: "run2" less "run0": with one run no interval is claimed' in err
    found = pd.read_parquet(AnalysisLayout(out).table)
    assert found["arm"].unique().tolist() == ["run2", "run3"]
    assert len(stdout.splitlines()) == 2 + 3 * 2 + 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["RUN0"], "there is nothing to compare: name at least two runs, or two groups"),
        (["RUN0", "RUN0"], "is named twice: a run cannot be compared with itself"),
        (["RUN0", "RUN0/../run0"], "is named twice: a run cannot be compared with itself"),
        (["RUN0", "RUN1", "--group", "run0=RUN2"], 'two arms are called "run0"'),
        (["RUN0", "RUN1", "--interval", "bootstrap"], "a bootstrap needs at least 10 runs in each arm"),
        (["RUN0", "--group", "low"], '"low" is not a group: write NAME=RUN,RUN'),
        (["--group", "a=RUN0", "--group", "a=RUN1"], 'the group "a" is given twice'),
        (["RUN0", "RUN1", "--name", "defualt"], 'has no analysis "defualt"; did you mean "default"?'),
        (["RUN0", "RUN9"], "does not exist"),
        (["RUN0", "RUN1", "--metric", "pre"], 'the table has no metric "pre"; did you mean "per"?'),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    command: Command, runs: list[Path], arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    words = [re.sub(r"RUN(\d)", lambda m: str(tmp_path / f"run{m[1]}"), word) for word in arguments]
    code, stdout, err = command("compare", *words, "--out", tmp_path / "out")
    assert (code, stdout) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_groups_are_parsed_in_order() -> None:
    found = parse_groups(["b=x,y", "a=z,"])
    assert list(found.items()) == [("b", [Path("x"), Path("y")]), ("a", [Path("z")])]
    with pytest.raises(UserError, match="is not a group"):
        parse_groups(["=x"])


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
    (part,) = [report_arms._part(shown, differences) for shown in report_arms.drawn(arms, None)]
    ((title, headings, rows),) = part.tables
    assert title == "low less the baseline"
    assert [name for name, _ in rows] == ["self_attn.v_proj"] * 2
    means = differences[differences["step"].isna()]
    by_heading = dict(zip(headings[1:], rows[0][1], strict=True))
    assert by_heading["difference"].value == means["difference"].iloc[0]
    assert by_heading["interval"].text == "Student, pairs, df 1"
    assert by_heading["layer"].text == "0"
    assert by_heading["relative"].text == "2.0%"


def test_the_overlay_has_a_line_and_a_band_for_each_arm_and_says_which(runs: list[Path]) -> None:
    arms = open_arms([], groups(runs), "default")
    (shown,) = report_arms.drawn(arms, ["per"])
    figure = plot_arms.overlay(shown)
    (axes,) = (one for one in figure.axes if one.get_title())
    assert len(axes.lines) == len(axes.collections) == 2
    full = [read(RunLayout(run).analysis("default").table) for run in runs[:2]]
    means = [frame.groupby("step")["value"].mean() for frame in full]
    assert axes.lines[0].get_ydata() == pytest.approx(((means[0] + means[1]) / 2).tolist())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["full", "low"]
    assert legend.get_title().get_text() == "PER (fraction of full rank): weights, mean over layers"
    FigureCanvasAgg(figure).draw()
    assert legend.get_window_extent().y0 > axes.title.get_window_extent().y1, "the legend lies above the panels"


def test_the_map_of_differences_is_symmetric_and_dots_what_max_t_finds(runs: list[Path]) -> None:
    arms = open_arms([], groups(runs), "default")
    differences = compare(arms)
    assert differences["p_max_t"].isna().all()
    at_steps = report_arms.select(report_arms.by_step(differences, "low"), report_arms.drawn(arms, ["per"])[0])
    (axes,) = (one for one in plot_arms.difference_map(at_steps).axes if one.get_title())
    (dots,) = (line for line in axes.lines if line.get_marker() == "o")
    assert len(dots.get_xdata()) == 0, "two pairs cannot reach 0.05, however far intervals lie from 0"
    differences["p_max_t"] = 0.05
    differences.loc[(differences["step"] == 1) & (differences["layer"] == 0), "p_max_t"] = 0.06
    at_steps = report_arms.select(report_arms.by_step(differences, "low"), report_arms.drawn(arms, ["per"])[0])
    figure = plot_arms.difference_map(at_steps)
    (axes,) = (one for one in figure.axes if one.get_title())
    (image,) = axes.images
    low, high = image.get_clim()
    assert low == -high
    assert np.max(image.get_array()) == pytest.approx(high)
    (dots,) = (line for line in axes.lines if line.get_marker() == "o")
    assert set(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == {(0, 0), (2, 0), (0, 1), (1, 1), (2, 1)}
    assert figure.get_suptitle() == "PER (fraction of full rank): weights, low less full"


def test_tables_have_no_marks_and_say_that_intervals_are_not_adjusted(runs: list[Path]) -> None:
    arms = open_arms([], groups(runs), "default")
    html = report_arms.render(arms, compare(arms))
    assert "is not adjusted for how many there are" in html
    assert "No cell is marked" in html
    assert "<strong>" not in html
    assert "by chance" not in html


def test_runs_of_one_name_are_arms_called_by_their_paths(command: Command, runs: list[Path], tmp_path: Path) -> None:
    for root, name in zip(runs, ("run", "run", "other"), strict=False):
        manifest = RunLayout(root).manifest
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"name": name}))
    code, _, _ = command("compare", *runs[:3], "--out", tmp_path / "out")
    assert code == 0
    found = pd.read_parquet(AnalysisLayout(tmp_path / "out").table)
    assert set(found["baseline"]) == {str(runs[0])}
    assert set(found["arm"]) == {str(runs[1]), str(runs[2])}
    code, _, _ = command("compare", runs[0], "--group", f"mine={runs[2]},{runs[3]}", "--out", tmp_path / "out2")
    assert code == 0
    assert set(pd.read_parquet(AnalysisLayout(tmp_path / "out2").table)["baseline"]) == {"run"}


def test_a_copy_of_a_run_is_no_second_seed(command: Command, runs: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    given = ["--group", f"full={runs[0]},{copy}", "--group", f"low={runs[2]},{runs[3]}"]
    code, _, err = command("compare", *given, "--out", tmp_path / "out")
    assert code == 0
    assert "have the same seeds (init 0), and their numbers are identical to the last bit: they count as one run" in err
    found = pd.read_parquet(AnalysisLayout(tmp_path / "out").table)
    assert found[["low", "high"]].isna().all(axis=None)
    assert set(found["baseline_runs"]) == {1}
