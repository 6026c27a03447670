"""`plot`: figures from the table alone, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pico_analyze.sources.run import Run
from pico_contract.layout import MANIFEST, RunLayout

from ...support.command_line import Command

SMALL = ("metrics=[per,cka_debiased]", "components=[v_proj,ov_circuit]", "splits=[val]")


def test_plot_draws_from_the_table_alone(command: Command, layout: RunLayout) -> None:
    command("run", layout.root, *SMALL, "kinds=[weights]", "figures.metrics=[]", "name=mine")
    for directory in layout.snapshots.iterdir():
        (directory / MANIFEST).unlink()
    code, out, _ = command("plot", layout.root, "--name", "mine", "--metric", "per", "--heads", "--format", "svg,pdf")
    assert code == 0
    stems = [f"weights_per_{form}" for form in ("lines", "map", "heads", "layers")]
    expected = {layout.analysis("mine").figures / f"{stem}.{ending}" for stem in stems for ending in ("svg", "pdf")}
    assert {Path(line) for line in out.splitlines()} == expected
    assert set(layout.analysis("mine").figures.iterdir()) == expected


def test_plot_names_the_nearest_analysis_metric_and_format(command: Command, layout: RunLayout) -> None:
    command("run", layout.root, *SMALL, "figures.metrics=[]", "name=mine")
    for arguments, sentence in (
        (["--name", "mien"], 'has no analysis "mien"; did you mean "mine"?'),
        (["--name", "mine", "--metric", "pre"], 'the table has no metric "pre"; did you mean "per"?'),
        (["--name", "mine", "--format", "bmp"], "should end in .png, .svg, .pdf"),
    ):
        code, _, err = command("plot", layout.root, *arguments)
        assert code == 2
        assert sentence in err


def test_plot_draws_them_where_asked_for(layout: RunLayout, command: Command) -> None:
    code, _, _ = command("run", layout.root, "metrics=[per]", "components=[v_proj]", "figures.metrics=[]")
    assert code == 0
    code, printed, _ = command("plot", layout.root, "--spectra")
    assert code == 0
    drawn = Path(printed.splitlines()[-1])
    assert drawn == layout.analysis("default").figures / "weights_spectra.png"
    assert drawn.stat().st_size > 5000


@pytest.mark.slow
def test_the_command_draws_weights_and_gradients(run: Run, command: Command) -> None:
    root = run.layout.root
    code, printed, _ = command("run", root, "metrics=[per]", "kinds=[weights]")
    assert code == 0
    code, drawn, _ = command("plot", root, "--distributions")
    assert code == 0
    made = [Path(line).name for line in (printed + drawn).split()]
    assert {"weights_distributions.png", "gradients_val_distributions.png"} <= set(made)
