"""Figures across depth: what they hold, and that it can be read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from pico_analyze.plot import over_layers, panels
from pico_analyze.plot.data import PlotData, plot_data
from pico_analyze.plot.figures import draw_figures
from pico_analyze.table import from_rows

STEPS = (0, 1, 2, 4, 8, 16, 100, 12_000)
COMPONENTS = ["self_attn.q_proj", "mlp.down_proj", "ov_circuit"]
Value = Callable[[int, int, int], float | None]


def table(value: Value, layers: int = 3, heads: int = 2, reference: int | None = None) -> pd.DataFrame:
    """Similarities of activations to `reference`, or PER of weights: value(step, layer, head)."""
    similar = {
        "kind": "activations",
        "split": "val",
        "metric": "cka",
        "unit": "similarity",
        "reference_step": reference,
    }
    of = similar if reference is not None else {"kind": "weights", "metric": "per", "unit": "fraction of full rank"}
    rows = []
    for name, layer, step in itertools.product(COMPONENTS, range(layers), STEPS):
        for head in range(heads) if name == "ov_circuit" else [None]:
            number = value(step, layer, head or 0)
            place = {"component": name, "layer": layer, "head": head, "module": f"model.layers.{layer}.{name}"}
            status = "ok" if number is not None else "missing"
            rows.append({"run": "r", "step": step, "variant": "{}", **place, **of, "value": number, "status": status})
    return from_rows(rows)


def shown(value: Value, **of: Any) -> PlotData:
    frame = table(value, **of)
    return plot_data(frame, frame["metric"].iloc[0], frame["kind"].iloc[0])


def panel(figure: Figure, name: str) -> Any:
    (axes,) = (axes for axes in figure.axes if axes.get_title().partition(",")[0] == name)
    return axes


def test_a_profile_has_a_line_over_layers_for_each_of_a_few_steps() -> None:
    figure = over_layers.by_depth(shown(lambda step, layer, head: (1 + step + 100_000 * layer + head) / 1e6))
    axes = panel(figure, "mlp.down_proj")
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_ydata()[0] * 1e6 - 1 for line in lines] == pytest.approx([0, 2, 8, 16, 12_000])
    assert all(line.get_xdata() == pytest.approx([0, 1, 2]) for line in lines)
    assert lines[-1].get_ydata() == pytest.approx([0.012001, 0.112001, 0.212001])
    assert figure.get_supxlabel() == "layer"
    bar = next(axes for axes in figure.axes if axes.get_ylabel() == "step")
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0", "2", "8", "16", "12k"]


def test_heads_are_dots_at_the_last_step_beside_their_mean() -> None:
    axes = panel(over_layers.by_depth(shown(lambda step, layer, head: 0.1 + 0.2 * head)), "ov_circuit")
    *means, dots = axes.lines
    assert all(line.get_ydata() == pytest.approx([0.2] * 3) for line in means)
    assert sorted(dots.get_ydata()) == pytest.approx([0.1] * 3 + [0.3] * 3)


def test_a_layer_settled_at_the_first_step_from_which_it_stays_near() -> None:
    near = {0: (4, 8, 16, 100, 12_000), 1: (1, 16, 100, 12_000), 2: (12_000,)}
    figure = over_layers.convergence(
        shown(lambda step, layer, head: 0.95 if step in near[layer] else 0.5, reference=12_000)
    )
    (axes,) = figure.axes
    assert axes.images[0].get_array().tolist() == [[STEPS.index(step) for step in (4, 16, 12_000)]] * 3
    assert [text.get_text() for text in axes.texts] == ["4", "16", "12k"] * 3
    assert [label.get_text() for label in axes.get_yticklabels()] == COMPONENTS
    assert "to step 12000, run r: from which step on at least 0.9" in figure.get_suptitle().replace("\n", " ")


def test_with_many_layers_a_bar_takes_the_place_of_texts() -> None:
    figure = over_layers.convergence(shown(lambda *_: 0.95, layers=17, reference=12_000))
    assert list(figure.axes[0].texts) == []
    assert [axes.get_ylabel() for axes in figure.axes[1:]] == ["step"]


def test_a_value_that_is_lacking_is_not_near() -> None:
    def value(step: int, layer: int, head: int) -> float | None:
        return None if (step, layer) == (100, 0) or layer == 2 else 1.0

    figure = over_layers.convergence(shown(value, reference=12_000))
    places = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert places[0, :2].tolist() == [STEPS.index(12_000), 0]
    assert np.isnan(places[:, 2]).all()
    assert "gaps: " in figure.get_supxlabel()


@pytest.mark.parametrize(("reference", "ends"), [(12_000, True), (0, False), (None, False)])
def test_convergence_is_of_similarities_to_the_last_step(reference: int | None, ends: bool) -> None:
    one = shown(lambda *_: 0.5, reference=reference)
    assert over_layers.ends_at_its_reference(one) == ends


def test_what_is_drawn_of_a_subject() -> None:
    similar = table(lambda *_: 0.5, reference=12_000)
    assert [one.form for one in draw_figures(similar, ["cka"])] == ["lines", "map", "layers", "convergence"]
    assert [one.stem for one in draw_figures(table(lambda *_: 0.5), heads=True)] == [
        "overview",
        *(f"weights_per_{form}" for form in ("lines", "map", "heads", "layers")),
    ]
    assert [one.form for one in draw_figures(table(lambda *_: 0.5, layers=1), ["per"])] == ["lines", "map"]


@pytest.mark.parametrize("layers", [2, 12, 48])
@pytest.mark.parametrize("draw", [over_layers.by_depth, over_layers.convergence])
def test_text_is_inside_and_labels_do_not_overlap(draw: Callable[[PlotData], Figure], layers: int) -> None:
    figure = draw(shown(lambda step, layer, head: min(1.0, 0.8 + step / 500), layers=layers, reference=12_000))
    FigureCanvasAgg(figure).draw()
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in (figure._suptitle,):
            box = text.get_window_extent()
            assert -1 <= box.x0 < box.x1 <= figure.bbox.width + 1, text.get_text()
            assert -1 <= box.y0 < box.y1 <= figure.bbox.height + 1, text.get_text()
    for axes in figure.axes:
        labels = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert all(right.x0 > left.x1 for left, right in itertools.pairwise(labels)), axes.get_title()


@pytest.mark.parametrize("draw", [over_layers.by_depth, over_layers.convergence])
def test_without_any_value_it_is_drawn_all_the_same(draw: Callable[[PlotData], Figure], tmp_path: Path) -> None:
    figure = draw(shown(lambda *_: None, reference=12_000))
    assert panels.save(figure, tmp_path / "figure.svg").stat().st_size > 1000
    assert "missing" in figure.get_supxlabel()


@pytest.mark.parametrize("draw", [over_layers.by_depth, over_layers.convergence])
def test_the_same_table_gives_the_same_bytes(draw: Callable[[PlotData], Figure], tmp_path: Path) -> None:
    one, other = (
        panels.save(draw(shown(lambda *_: 0.95, reference=12_000)), tmp_path / f"{i}.svg").read_bytes() for i in (0, 1)
    )
    assert one == other
