"""Figures: what they say, that it can be read, and that the same table gives the same bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from pico_analyze.plot import over_steps
from pico_analyze.plot.data import PlotData, plot_data
from pico_analyze.plot.panels import FORMATS, save
from pico_analyze.table import from_rows
from pico_contract.errors import UserError

LOG_STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 10_000, 1000))
COMPONENTS = [
    *(f"self_attn.{p}_proj" for p in "qkvo"),
    *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
    "ov_circuit",
]

SOME = COMPONENTS[-2:]


def table(
    layers: int = 4,
    heads: int = 4,
    steps: tuple[int, ...] = LOG_STEPS,
    components: list[str] = SOME,
    value: Callable[..., float | None] = lambda step, layer, head: 1 / (2 + step + layer + head),
    **columns: Any,
) -> pd.DataFrame:
    """PER of weights: `value(step, layer, head)`, null where that is None."""
    rows = []
    for name, layer, step in itertools.product(components, range(layers), steps):
        for head in range(heads) if name == "ov_circuit" else [None]:
            number = value(step, layer, head or 0)
            found = {"value": number, "status": "ok" if number is not None else "rank_deficient"}
            place = {"component": name, "layer": layer, "head": head, "module": f"model.layers.{layer}.{name}"}
            what = {"metric": "per", "kind": "weights", "unit": "fraction of full rank", "variant": "{}"}
            rows.append({"run": "small", "step": step, **place, **what, **found, **columns})
    return from_rows(rows)


def per(**of: Any) -> PlotData:
    return plot_data(table(**of), "per", "weights")


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title().partition(",")[0]: axes for axes in figure.axes if axes.get_title()}


def drawn_texts(figure: Figure) -> list[Text]:
    """All but the labels of ticks outside the limits of their axis, which exist but are not drawn."""
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    ticks = [(tick, *sorted(axis.get_view_interval())) for axis in axes for tick in axis.get_major_ticks()]
    beyond = {tick.label1 for tick, low, high in ticks if not low <= tick.get_loc() <= high}
    beyond |= {tick.label2 for tick, low, high in ticks if not low <= tick.get_loc() <= high}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text for text in texts if text not in beyond]


def assert_legible(figure: Figure) -> None:
    """No text leaves the figure, and no label or title lies on another by more than the margin around letters."""
    FigureCanvasAgg(figure).draw()
    texts = drawn_texts(figure)
    boxes = [(text.get_text(), text.get_window_extent().padded(-2)) for text in texts]
    assert len(boxes) > 4
    for text, box in boxes:
        assert box.x0 >= 0 <= box.y0, text
        assert box.x1 <= figure.bbox.width, text
        assert box.y1 <= figure.bbox.height, text
    clashes = [(one, other) for (one, a), (other, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert clashes == []
    for axes in figure.axes:
        labels = [label.get_window_extent() for label in axes.get_xticklabels() if label in texts]
        assert all(right.x0 - left.x1 >= 3 for left, right in itertools.pairwise(labels)), axes.get_title()


DRAWINGS = [over_steps.lines, over_steps.heatmap, over_steps.head_map]


@pytest.mark.parametrize("draw", DRAWINGS)
@pytest.mark.parametrize(
    "of",
    [
        {"layers": 12, "heads": 12, "components": COMPONENTS, "value": lambda step, *_: 0.9125 + 1e-6 * step},
        {"steps": tuple(12_500 * step for step in range(9)), "value": lambda step, *_: 1e-7 * (step + 1)},
        {"layers": 1, "steps": (0,)},
        {"layers": 2, "steps": (54_321, 123_456), "components": ["ov_circuit"]},
    ],
)
def test_text_is_inside_and_does_not_overlap(draw: Callable[[PlotData], Figure], of: dict[str, Any]) -> None:
    assert_legible(draw(per(**of)))


@pytest.mark.parametrize("draw", DRAWINGS)
def test_long_names_and_many_reasons_are_folded(draw: Callable[[PlotData], Figure]) -> None:
    frame = table(components=["ov_circuit"], value=lambda step, layer, head: 1.0 if step else None, run="a-run-" * 12)
    empty = frame.index[frame["value"].isna()]
    frame.loc[empty[:3], "status"] = "missing"
    frame.loc[empty[3:6], "status"] = "non_finite"
    frame.loc[empty[6:8], "status"] = "n_less_than_d"
    assert_legible(draw(plot_data(frame, "per", "weights")))


def test_overview_is_legible() -> None:
    plain = {"components": COMPONENTS[:-1], "layers": 12, "steps": tuple(10 * step for step in LOG_STEPS)}
    kinds = [
        {"kind": "weights", "metric": "per", "unit": "fraction of full rank"},
        {
            "kind": "activations",
            "metric": "cka_debiased",
            "unit": "similarity",
            "split": "val",
            "reference_step": 200_000,
        },
        {"kind": "gradients", "metric": "frobenius_norm", "unit": "nats per unit of weight", "split": "val"},
    ]
    assert_legible(over_steps.overview(pd.concat([table(**plain, **kind) for kind in kinds])))


@pytest.mark.parametrize("draw", DRAWINGS)
def test_title_says_what_of_which_run_with_the_unit(draw: Callable[[PlotData], Figure]) -> None:
    title = draw(per()).get_suptitle()
    assert title == "PER (fraction of full rank): weights, run small"


def test_a_name_is_not_read_as_a_formula(tmp_path: Path) -> None:
    assert save(over_steps.heatmap(per(layers=1, run="$\\a_$")), tmp_path / "figure.png").stat().st_size > 1000


def test_title_says_split_and_reference() -> None:
    frame = table(
        components=COMPONENTS, kind="activations", split="val", metric="cka", unit="similarity", reference_step=9000
    )
    title = over_steps.lines(plot_data(frame, "cka", "activations")).get_suptitle()
    assert title == "linear CKA (similarity): activations (val), to step 9000, run small"


def test_axes_are_labelled() -> None:
    lines = over_steps.lines(per())
    assert lines.get_supylabel() == "PER (fraction of full rank)"
    assert lines.get_supxlabel() == "step (linear up to the first observed, then logarithmic)"
    heat = over_steps.heatmap(per())
    assert (heat.get_supylabel(), heat.get_supxlabel()) == ("layer", "observed step")
    assert over_steps.head_map(per()).get_supylabel() == "layer, its heads upwards"


def test_panels_are_the_components_in_the_order_of_the_table() -> None:
    shown = per(components=COMPONENTS)
    assert list(panels(over_steps.lines(shown))) == COMPONENTS
    assert list(panels(over_steps.heatmap(shown))) == COMPONENTS
    assert list(panels(over_steps.head_map(shown))) == ["ov_circuit"]
    assert "ov_circuit, 4 heads" in texts(over_steps.lines(shown))


def test_lines_hold_the_values_of_each_layer_and_the_mean_over_heads() -> None:
    of = panels(over_steps.lines(per(value=lambda step, layer, head: 100 * layer + 10 * head + step + 1)))
    for layer, line in enumerate(of["mlp.down_proj"].lines):
        assert line.get_xdata() == pytest.approx(LOG_STEPS)
        assert line.get_ydata() == pytest.approx([100 * layer + step + 1 for step in LOG_STEPS])
    for layer, line in enumerate(of["ov_circuit"].lines):
        assert line.get_ydata() == pytest.approx([100 * layer + 15 + step + 1 for step in LOG_STEPS])


def test_maps_hold_layers_upwards_by_steps_and_heads_within_layers() -> None:
    shown = per(layers=3, value=lambda step, layer, head: 100 * layer + 10 * head + 1)
    image = panels(over_steps.heatmap(shown))["mlp.down_proj"].images[0]
    assert image.get_array().shape == (3, len(LOG_STEPS))
    assert image.origin == "lower"
    assert image.get_array()[:, 0].tolist() == [1, 101, 201]
    by_head = panels(over_steps.head_map(shown))["ov_circuit"].images[0].get_array()
    assert by_head[:, -1].tolist() == [100 * layer + 10 * head + 1 for layer in range(3) for head in range(4)]


@pytest.mark.parametrize(
    ("unit", "most", "wide"), [("ratio", 1.0, True), ("ratio", 1e-4, False), ("index", 1.0, False)]
)
def test_wide_values_without_a_bound_get_logarithmic_axes_and_colours(unit: str, most: float, wide: bool) -> None:
    frame = table(value=lambda step, layer, head: 1 + most * step)
    frame["unit"] = unit
    shown = plot_data(frame, "per", "weights")
    assert (panels(over_steps.lines(shown))["ov_circuit"].get_yscale() == "log") == wide
    assert isinstance(panels(over_steps.heatmap(shown))["ov_circuit"].images[0].norm, LogNorm) == wide


def test_first_and_last_step_are_labelled() -> None:
    for draw in DRAWINGS:
        ticks = [tick.get_text() for tick in panels(draw(per()))["ov_circuit"].get_xticklabels()]
        assert (ticks[0], ticks[-1]) == ("0", "9000")


def test_gaps_are_drawn_as_gaps_and_counted_below() -> None:
    shown = per(components=["mlp.down_proj"], value=lambda step, layer, head: None if step == 8 else 1.0)
    lines = over_steps.lines(shown)
    assert "gaps: 4 of 80 numbers have no value (rank_deficient\xa04)" in lines.get_supxlabel()
    data = np.asarray(panels(lines)["mlp.down_proj"].lines[0].get_ydata(), dtype=float)
    assert np.isnan(data).tolist() == [step == 8 for step in LOG_STEPS]
    cells = panels(over_steps.heatmap(shown))["mlp.down_proj"].images[0].get_array()
    assert np.ma.getmaskarray(cells)[:, LOG_STEPS.index(8)].all()


def test_a_mean_over_heads_of_which_one_has_no_value_is_a_gap() -> None:
    shown = per(layers=1, value=lambda step, layer, head: None if (step, head) == (8, 2) else 1.0)
    data = np.asarray(panels(over_steps.lines(shown))["ov_circuit"].lines[0].get_ydata(), dtype=float)
    assert np.isnan(data).tolist() == [step == 8 for step in LOG_STEPS]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_panel_without_any_value_says_why(draw: Callable[[PlotData], Figure]) -> None:
    figure = draw(per(value=lambda *_: None))
    assert "no value to draw:\nrank_deficient" in texts(figure)


def test_modules_outside_the_layers_are_drawn_in_grey_and_labelled_with_a_dash() -> None:
    frame = table(components=["lm_head"], layers=1)
    frame["layer"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    shown = plot_data(frame, "per", "weights")
    assert panels(over_steps.lines(shown))["lm_head"].lines[0].get_color() == "0.25"
    assert [tick.get_text() for tick in panels(over_steps.heatmap(shown))["lm_head"].get_yticklabels()] == ["-"]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("draw", [over_steps.lines, over_steps.heatmap])
def test_the_same_table_gives_the_same_bytes(tmp_path: Path, draw: Callable[[PlotData], Figure], ending: str) -> None:
    of = {"layers": 2, "steps": (0, 1, 2), "components": ["mlp.down_proj"]}
    one, other = (save(draw(per(**of)), tmp_path / f"{i}.{ending}") for i in range(2))
    assert one.read_bytes() == other.read_bytes()
    assert len(one.read_bytes()) > 1000


def test_files_are_of_their_format(tmp_path: Path) -> None:
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for ending, start in starts.items():
        assert save(over_steps.heatmap(per(layers=1)), tmp_path / f"figure.{ending}").read_bytes().startswith(start)
    with pytest.raises(UserError, match=r"should end in \.png, \.svg, \.pdf"):
        save(over_steps.heatmap(per(layers=1)), tmp_path / "figure.bmp")


def test_panels_of_a_map_share_their_colours_and_one_bar() -> None:
    figure = over_steps.heatmap(plot_data(table(), "per", "weights"))
    images = [image for axes in figure.axes if axes.get_title() for image in axes.get_images()]
    assert len({image.get_clim() for image in images}) == 1
    assert [axes.get_title() for axes in figure.axes].count("") == 1, "one bar of colours"
    values = np.concatenate([np.asarray(image.get_array()).ravel() for image in images])
    assert images[0].get_clim() == pytest.approx((np.nanmin(values), np.nanmax(values)))


def test_panels_of_a_single_step_say_so() -> None:
    figure = over_steps.lines(plot_data(table(steps=(5,)), "per", "weights"))
    assert {axes.get_xlabel() for axes in figure.axes if axes.get_title()} == {"one step: dots, no line"}
