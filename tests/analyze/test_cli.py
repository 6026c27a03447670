"""The commands, in this process where a start of their own is not the point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pico_analyze.metrics import METRICS
from pico_analyze.table import read
from pico_contract.layout import MANIFEST, RunLayout

from ..support.command_line import Command

SMALL = ("metrics=[per,cka_debiased]", "components=[v_proj,ov_circuit]", "splits=[val]")


def test_run_writes_table_figures_configuration_and_report(command: Command, layout: RunLayout) -> None:
    code, out, err = command("run", layout.root, *SMALL)
    assert code == 0
    analysis = layout.analysis("default")
    written = {Path(line) for line in out.splitlines()}
    figures = {f"{stem}_{form}.png" for stem in ("weights_per", "activations_val_per") for form in ("lines", "map")}
    assert {analysis.table, analysis.table_csv, analysis.config, analysis.report} <= written
    assert {analysis.figures / name for name in figures} <= written
    assert all(path.is_file() for path in written)
    there = {path for path in analysis.root.rglob("*") if path.is_file()}
    assert {path for path in there if path.parent != analysis.cache} == written
    assert set(read(analysis.table)["metric"]) == {"per", "cka_debiased"}
    assert err.splitlines()[-1] == "measured 10 of 10"
    assert yaml.safe_load(analysis.config.read_text())["metrics"] == ["per", "cka_debiased"]


def test_feeding_the_written_configuration_back_repeats_the_analysis(command: Command, layout: RunLayout) -> None:
    command("run", layout.root, *SMALL, "kinds=[weights]", "figures.metrics=[per]")
    analysis = layout.analysis("default")
    before = {path: path.read_bytes() for path in analysis.root.rglob("*") if path.is_file()}
    assert command("run", analysis.config)[0] == 0
    assert {path: path.read_bytes() for path in analysis.root.rglob("*") if path.is_file()} == before


def test_run_says_what_is_damaged_and_measures_the_rest(command: Command, layout: RunLayout) -> None:
    (layout.snapshot(1) / MANIFEST).unlink()
    code, _, err = command("run", layout.root, *SMALL, "figures.metrics=[]")
    assert code == 0
    assert f"warning: step 1 is left out in part: {layout.snapshot(1) / MANIFEST} does not exist" in err
    assert "Traceback" not in err
    assert set(read(layout.analysis("default").table)["step"]) == {0, 1, 2}


def test_a_run_of_which_nothing_is_intact_names_each_damage_before_it_fails(
    command: Command, layout: RunLayout
) -> None:
    for directory in (*layout.snapshots.iterdir(), *layout.checkpoints.iterdir()):
        (directory / MANIFEST).unlink()
    code, _, err = command("run", layout.root)
    assert code == 2
    *warned, last = err.splitlines()
    assert [line.partition(": ")[0] for line in warned] == ["warning"] * 4
    assert last.startswith('pico-analyze: run "small" has no intact weights')


def test_by_default_all_metrics_are_measured_and_the_overview_drawn(command: Command, layout: RunLayout) -> None:
    code, out, _ = command("run", layout.root, "components=[v_proj]")
    assert code == 0
    held = {"weights", "gradients", "activations"}
    found = set(read(layout.analysis("default").table)["metric"])
    assert found == {name for name, metric in METRICS.items() if held & set(metric.kinds)}
    assert (layout.analysis("default").figures / "overview.png").is_file()
    assert len(out.splitlines()) == 4 + 1 + 3 * 3 + 1 + 1


def test_report_writes_again_what_run_wrote(command: Command, layout: RunLayout) -> None:
    command("run", layout.root, *SMALL, "kinds=[weights]", "figures.metrics=[per]", "figures.heads=true", "name=mine")
    written = layout.analysis("mine").report
    before = written.read_bytes()
    written.unlink()
    code, out, _ = command("report", layout.root, "--name", "mine")
    assert (code, out) == (0, f"{written}\n")
    assert written.read_bytes() == before
    code, _, err = command("report", layout.root, "--name", "mien")
    assert code == 2
    assert 'has no analysis "mien"; did you mean "mine"?' in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["metrics=[giny]"], 'RUN: metrics: there is no metric "giny"; did you mean "gini"?'),
        (["metrcs=[gini]"], 'the command line: unknown key "metrcs" at the top level; did you mean "metrics"?'),
        (["steps=[5]"], "the run has no step 5; the nearest is 2"),
        (["steps={start: 50}"], "no observed step lies in {'start': 50}; the run has 0, 1, 2"),
        (["components=[ov_circut]"], 'there is no component "ov_circut"; did you mean "ov_circuit"?'),
        (["components=[v_prj]"], 'the pattern "v_prj" matches no module; the nearest names are: v_proj'),
        (["reference=7"], "the reference step 7 is not in the run; the nearest is 2"),
        (
            ["kinds=[weight]"],
            "kinds.0: should be 'weights', 'gradients', 'activations', 'microbatch_gradients' or 'updates'",
        ),
        (["metrics=[per]", "components=[v_proj]", "figures.metrics=[gini]"], 'the table has no metric "gini"'),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    command: Command, layout: RunLayout, arguments: list[str], sentence: str
) -> None:
    code, out, err = command("run", layout.root, *arguments)
    last = err.splitlines()[-1]
    assert code == 2
    assert out == ""
    assert last.startswith("pico-analyze: ")
    assert sentence.replace("RUN", str(layout.root)) in last
    assert all(line.startswith("measured") for line in err.splitlines()[:-1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "SMAL"], 'did you mean "small"?'),
        (["inspect", "SMAL"], 'SMAL does not exist; did you mean "small"?'),
        (["plot", "RUN"], 'has no analysis "default": run pico-analyze run first'),
    ],
)
def test_what_does_not_exist_is_named(command: Command, layout: RunLayout, arguments: list[str], sentence: str) -> None:
    places = {"RUN": layout.root, "SMAL": layout.root.with_name("smal")}
    code, _, err = command(*(places.get(word, word) for word in arguments))
    assert code == 2
    assert sentence.replace("SMAL", str(places["SMAL"])) in err
    assert len(err.splitlines()) == 1


def test_a_users_metric_lies_in_the_directory_of_the_command(
    command: Command, layout: RunLayout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "row_metrics.py").write_text("def count(x):\n    return len(x)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, _, _ = command("run", layout.root, "metrics=['row_metrics:count']", "components=[v_proj]", "kinds=[weights]")
    assert code == 0
    frame = read(layout.analysis("default").table)
    assert set(frame["value"]) == {8.0}
    twin = pd.read_csv(layout.analysis("default").table_csv)
    assert set(twin["metric"]) == {"row_metrics:count"}
    assert (layout.analysis("default").figures / "weights_row_metrics.count_lines.png").is_file()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['pico-analyze', '--help']\n"
        "from pico_analyze.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert all(name in done.stdout for name in ("run", "plot", "inspect", "metrics"))
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command(layout: RunLayout) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pico_analyze", "inspect", layout.root.with_name("smal")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("pico-analyze: ")
    assert 'did you mean "small"' in done.stderr
    assert "Traceback" not in done.stderr
