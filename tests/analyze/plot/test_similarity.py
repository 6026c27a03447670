"""Similarity matrices, and tables of pairs through figures, report, comparison and command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from pico_analyze import measure
from pico_analyze.compare import compare
from pico_analyze.compare.arms import Arm
from pico_analyze.plot import panels, similarity
from pico_analyze.plot.data import plot_data
from pico_analyze.plot.figures import draw_figures
from pico_analyze.report import run as report
from pico_analyze.report.arms import plotted as drawn_arms
from pico_analyze.sources.run import Run
from pico_analyze.table import read

from ...support.command_line import Command

ACTIVATIONS: dict[str, Any] = {"kinds": ["activations"]}


def images(figure: Figure) -> dict[str, np.ndarray]:
    """Title of a panel -> its cells, NaN where white or without a value."""
    found = {}
    for axes in figure.axes:
        if axes.get_title():
            cells, blank = axes.get_images()
            white = ~np.ma.getmaskarray(blank.get_array())
            found[axes.get_title()] = np.where(white, np.nan, np.ma.filled(cells.get_array(), np.nan))
    return found


def test_between_steps_is_a_square_of_means_over_layers(new_run: Callable[..., Run]) -> None:
    frame = measure(new_run(steps=(0, 1, 2, 3)), ["cka"], ["q_proj", "ov_circuit"], **ACTIVATIONS, reference="all")
    shown = plot_data(frame, "cka", "activations")
    figure = similarity.between_steps(shown)
    assert (
        figure.get_suptitle().replace("\n", " ")
        == "linear CKA (similarity): activations (val), between steps, run new, mean of 2 layers"
    )
    cells = images(figure)
    assert list(cells) == ["self_attn.q_proj", "ov_circuit, 4 heads"]
    for title, component in zip(cells, ("self_attn.q_proj", "ov_circuit"), strict=True):
        assert np.isnan(cells[title]).tolist() == np.eye(4, dtype=bool).tolist()
        rows = shown.rows[(shown.rows["component"] == component) & (shown.rows["step"] == 3)]
        np.testing.assert_array_equal(cells[title], cells[title].T)
        assert cells[title][3, :3] == pytest.approx(rows.groupby("reference_step")["value"].mean().to_numpy())


def test_between_steps_of_one_component_has_a_panel_a_layer(new_run: Callable[..., Run], make_shape: Any) -> None:
    run = new_run(make_shape(layers=6), steps=(0, 1, 2))
    shown = plot_data(measure(run, ["cka"], ["v_proj"], **ACTIVATIONS, reference="all"), "cka", "activations")
    figure = similarity.between_steps(shown)
    assert list(images(figure)) == [f"self_attn.v_proj, layer {layer}" for layer in (0, 2, 3, 5)]
    norms = {tuple(image.get_clim()) for axes in figure.axes[:4] for image in axes.get_images()[:1]}
    assert len(norms) == 1  # panels in the same colours


def test_between_layers_at_a_few_steps(new_run: Callable[..., Run], make_shape: Any) -> None:
    run = new_run(make_shape(layers=3), steps=(0, 1, 2, 3, 4))
    shown = plot_data(
        measure(run, ["cka"], ["q_proj", "v_proj"], **ACTIVATIONS, reference="layers"), "cka", "activations"
    )
    figure = similarity.between_layers(shown, columns=3)
    cells = images(figure)
    assert list(cells) == [f"self_attn.{name}_proj, step {step}" for name in "qv" for step in (0, 2, 4)]
    rows = shown.rows[(shown.rows["component"] == "self_attn.v_proj") & (shown.rows["step"] == 4)]
    value = rows.set_index(["layer", "reference_module"])["value"]
    first, second = (f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1))
    a, b, c = value[1, first], value[2, first], value[2, second]
    expected = [[np.nan, a, b], [a, np.nan, c], [b, c, np.nan]]
    np.testing.assert_allclose(cells["self_attn.v_proj, step 4"], expected)


def test_what_has_no_value_is_hatched_and_counted(new_run: Callable[..., Run]) -> None:
    frame = measure(new_run(), ["cka"], ["q_proj", "v_proj"], **ACTIVATIONS, reference="all")
    lost = (frame["step"] == 2) & (frame["reference_step"] == 1)
    frame.loc[lost, ["value", "status"]] = [None, "missing"]
    figure = similarity.between_steps(plot_data(frame, "cka", "activations"))
    assert "4 of 12 numbers have no value (missing\N{NO-BREAK SPACE}4)" in figure.get_supxlabel()
    frame[["value", "status"]] = [None, "missing"]
    nothing = similarity.between_steps(plot_data(frame, "cka", "activations"))
    assert "no value to draw:\nmissing" in {text.get_text() for text in nothing.findobj(Text)}


def test_titles_of_panels_do_not_overlap(new_run: Callable[..., Run]) -> None:
    frame = measure(new_run(), ["cka"], **ACTIVATIONS, reference="all")
    figure = similarity.between_steps(plot_data(frame, "cka", "activations"))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


@pytest.mark.parametrize(("asked", "form"), [({"reference": "all"}, "steps"), ({"reference": "layers"}, "layers")])
def test_figures_and_report_of_pairs(run: Run, tmp_path: Path, asked: dict[str, Any], form: str) -> None:
    frame = measure(run, ["cka", "cka_debiased", "per"], ["v_proj"], **ACTIVATIONS, **asked)
    found = [(one.form, one.subject.metric) for one in draw_figures(frame, ["cka", "per"]) if one.subject]
    assert sorted(found) == [(f"between_{form}", "cka"), ("layers", "per"), ("lines", "per"), ("map", "per")]
    assert [one.form for one in draw_figures(frame)] == [f"between_{form}"]  # no overview of lines
    assert [[grid.metrics, len(grid.rows)] for grid in report.grids(frame)] == [[["PER"], 1]]
    assert report.grids(frame[frame["metric"] == "cka"]) == []
    page = report.render(run, frame, ["cka"])
    assert "Each cell compares a" in page
    paths = [panels.save(next(draw_figures(frame, ["cka"])).figure, tmp_path / f"{i}.png") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_tables_of_pairs_are_compared_pair_by_pair(run: Run) -> None:
    for asked, pairs in (({"reference": "layers"}, 1), ({"reference": "all"}, 2 * 3)):
        frame = measure(run, ["cka"], ["q_proj"], **ACTIVATIONS, **asked)
        arms = [Arm(name, [run], [frame]) for name in "ab"]
        differences = compare(arms)
        at_steps = differences[differences["step"].notna()]
        assert len(at_steps) == len(frame)
        assert (at_steps["difference"] == 0).all()
        assert len(at_steps) / (3 if pairs == 1 else 1) == pairs
        assert drawn_arms(arms, ["cka"]) == []


@pytest.mark.parametrize(
    ("override", "form"), [("reference=all", "between_steps"), ("across=layers", "between_layers")]
)
def test_pairs_from_the_command_line(command: Command, run: Run, override: str, form: str) -> None:
    asked = ("metrics=[cka_debiased]", "kinds=[activations]", "components=[v_proj]", override)
    code, out, _ = command("run", run.layout.root, *asked)
    assert code == 0
    analysis = run.layout.analysis("default")
    figure = analysis.figures / f"activations_val_cka_debiased_{form}.png"
    assert str(figure) in out.splitlines()
    assert "Each cell compares a" in analysis.report.read_text()
    figure.unlink()
    assert command("plot", run.layout.root)[0] == 0
    assert figure.is_file()


def test_another_run_and_the_null_from_a_file(
    command: Command, run: Run, new_run: Callable[..., Run], tmp_path: Path
) -> None:
    file = tmp_path / "asked.yaml"
    lines = ["metrics: [cka_debiased]", "components: [q_proj]", "kinds: [activations]", "null: permutation"]
    lines += [f"run: {run.layout.root}", f"reference_run: {new_run().layout.root}", "null_draws: 3"]
    file.write_text("\n".join(lines))
    assert command("run", file)[0] == 0
    analysis = run.layout.analysis("default")
    frame = read(analysis.table)
    assert command("run", analysis.config, "name=again", "figures.metrics=[]")[0] == 0
    pd.testing.assert_frame_equal(read(run.layout.analysis("again").table), frame, rtol=1e-12)
    assert set(frame["reference_run"]) == {"new"}
    assert frame["p"].notna().all()
    assert "to the same step of run new" in analysis.report.read_text()
    code, _, err = command("run", file, f"reference_run={tmp_path / 'nw'}")
    assert code == 2
    assert "nw does not exist" in err
    assert 'did you mean "new"?' in err
