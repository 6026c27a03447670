"""`compare` from the command line to the page: what is written, what is said, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from pico_analyze.commands.compare import parse_groups
from pico_contract.errors import UserError
from pico_contract.layout import AnalysisLayout, RunLayout

from ...support.command_line import Command


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
