"""The parts of every figure: panels, labels that fit, axes of steps, colours, and saved files.

To change a colour map, edit `LAYER_COLOURS`, `STEP_COLOURS` or `VALUE_COLOURS`; the colours of
arms are in `arms.py`. The same table gives the same bytes: no dates, no global state.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from pico_contract.codec import replacing
from pico_contract.errors import UserError

from pico_analyze.plot.data import OUTSIDE, PlotData, heads_of, is_wide
from pico_analyze.plot.fonts import fit_fonts

LAYER_COLOURS = "viridis"
"""The colour map of lines of layers."""
STEP_COLOURS = "plasma"
"""The colour map of lines and cells of steps, unlike that of layers."""
VALUE_COLOURS = "viridis"
"""The colour map of cells by their value; a map of differences has a diverging one."""
# Share of a colour map that is used for lines: its palest tenth is lost on white.
_DARK = 0.9

FORMATS = ("png", "svg", "pdf")
STEP_AXIS = "step (linear up to the first observed, then logarithmic)"
COLUMNS = 4
"""Panels side by side in a file; a report has fewer."""
TITLE = 10
"""Size of a panel's title, in points."""
HEIGHT = 2.3
"""Height of a panel, in inches."""
LETTERS = 11
"""Letters of a figure's title that fit in an inch."""
# Size of the labels of ticks, in points.
_TICK = 8
# Width of a panel, in inches; dots to the inch.
_WIDTH = 2.9
_DPI = 110
# `hashsalt` makes the ids in an SVG the same every time.
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "svg.hashsalt": "pico",
    "axes.grid": True,
    "grid.alpha": 0.3,
}
# Metadata that would differ from day to day or from version to version.
_NO_DATE: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
Panel = tuple[Axes, pd.DataFrame]


class _Shown(Figure):
    """A figure that a notebook shows exactly as `save` would write it."""

    # Without pyplot a notebook has no formatter for figures; it asks the object itself.
    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        write(self, file, "png")
        return file.getvalue()


def new_figure(rows: int, columns: int, title: str, height: float = HEIGHT) -> Figure:
    """Make a figure of `rows` x `columns` axes under a title."""
    with matplotlib.rc_context(_STYLE):
        figure = _Shown(
            figsize=(_WIDTH * max(columns, 2), height * rows + 0.9),
            layout=ConstrainedLayoutEngine(h_pad=0.08),
        )
        # Axes take their style when they are made.
        figure.subplots(rows, columns)
    for axes in figure.axes:
        _even_ticks(axes)
    figure.suptitle(wrap_text(figure, title), parse_math=False)
    return figure


def _even_ticks(axes: Axes) -> None:
    """Give all tick labels of the axes one size."""
    # The minor ticks of a logarithmic axis exist only once it is drawn: set the default of both.
    axes.tick_params(which="both", labelsize=_TICK)


def title_of(data: PlotData) -> str:
    """Name what a figure of one run shows, for its title."""
    return f"{data.quantity}: {data.object}, run {data.rows['run'].iloc[0]}"


def one_layer_of(rows: pd.DataFrame) -> str:
    """Name the layer of the rows for a title; "" if they are not of exactly one."""
    layers = rows["layer"].dropna().unique()
    return f" of layer {layers[0]}" if len(layers) == 1 else ""


def panels_of(
    title: str, rows: pd.DataFrame, columns: int = COLUMNS, height: float = HEIGHT
) -> tuple[Figure, list[Panel]]:
    """Make a figure with a titled panel for each component, in the order of the table.

    At most `columns` panels stand side by side.
    """
    groups = list(rows.groupby("component", sort=False))
    columns = min(columns, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure = new_figure(lines, columns, title, height)
    for axes in figure.axes[len(groups) :]:
        axes.remove()
    panels = []
    for axes, (component, table) in zip(figure.axes, groups, strict=True):
        name = f"{component}{heads_of(table)}"
        axes.set_title(_broken(name), fontsize=TITLE)
        panels.append((axes, table))
    return figure, panels


def _broken(title: str) -> str:
    """Break a panel's title at its last dot if the panel is too narrow for one line."""
    where, dot, last = title.rpartition(".")
    return f"{where}{dot}\n{last}" if len(title) > LETTERS * _WIDTH else title


def label_below(figure: Figure, axis: str, rows: pd.DataFrame) -> None:
    """Name the horizontal axis, and count the rows without a value by their status."""
    absent = rows.loc[rows["value"].isna(), "status"].value_counts().sort_index()
    reasons = ", ".join(
        f"{status}\N{NO-BREAK SPACE}{count}" for status, count in absent.items()
    )
    note = ""
    if reasons:
        note = f"gaps: {absent.sum()} of {len(rows)} numbers have no value ({reasons})"
    figure.supxlabel(f"{axis}\n{wrap_text(figure, note)}".rstrip())


def wrap_text(figure: Figure, text: str) -> str:
    """Wrap text into as few lines as fit the figure's width, all of about one length."""
    most = int(LETTERS * figure.get_figwidth())
    lines = len(textwrap.wrap(text, most))
    # The narrowest width that needs no more lines makes them about equally long.
    even = next(
        width for width in range(1, most + 1) if len(textwrap.wrap(text, width)) <= lines
    )
    return textwrap.fill(text, even)


def draw_no_data(axes: Axes, table: pd.DataFrame, values: pd.DataFrame) -> bool:
    """Write the reason into the panel if there is nothing to draw, and return whether it is so."""
    if values.notna().any(axis=None):
        return False
    why = ", ".join(sorted(table.loc[table["value"].isna(), "status"].unique()))
    axes.text(
        0.5,
        0.5,
        f"no value to draw:\n{why}",
        transform=axes.transAxes,
        ha="center",
        va="center",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    return True


def scale_steps(axes: Axes, steps: list[int]) -> None:
    """Scale the axis of steps: linear up to the first positive step, then logarithmic.

    Ticks stand at observed steps that lie far enough apart.
    """
    if len(steps) == 1:
        axes.set_xlabel("one step: dots, no line", fontsize=_TICK)
    first = next((step for step in steps if step > 0), 1)
    axes.set_xscale("symlog", linthresh=first, linscale=0.5)
    _set_step_ticks(axes, steps)


def _set_step_ticks(axes: Axes, steps: list[int]) -> None:
    """Label observed steps that lie far enough apart on the scale of the axis."""
    scale = axes.xaxis.get_transform()
    places = scale.transform(np.asarray(steps, dtype=float))
    shown = [steps[i] for i in thin_ticks(places.tolist())]
    axes.set_xticks(shown, [short(step) for step in shown])
    axes.set_xticks([], minor=True)


def thin_ticks(places: Sequence[float], most: int = 4) -> list[int]:
    """Choose indices of ascending `places` that lie at least a `most`-th of the whole apart.

    The first and the last are always among them.
    """
    distance = (places[-1] - places[0]) / most
    chosen: list[int] = []
    for index in reversed(range(len(places))):
        if not chosen or places[chosen[-1]] - places[index] >= distance:
            chosen.append(index)
    # The walk ends near the first place, rarely on it: the first replaces the last one chosen.
    return [0, *chosen[-2::-1]]


def short(step: int) -> str:
    """Write a step briefly: 12000 as 12k."""
    return f"{step // 1000}k" if step >= 10_000 and step % 1000 == 0 else str(step)


def pick_evenly(items: list[int], most: int) -> list[int]:
    """Pick the first, the last and evenly spaced items between, at most `most` of them."""
    if len(items) <= most:
        return items
    last = len(items) - 1
    # A single item is the first, not a division by zero.
    return [items[round(i * last / max(most - 1, 1))] for i in range(most)]


def layer_colours(layers: int) -> Colormap:
    """Return one colour for each layer, dark for the first."""
    return _dark_colours(LAYER_COLOURS, layers)


def step_colours(steps: int) -> Colormap:
    """Return one colour for each step, dark for the first."""
    return _dark_colours(STEP_COLOURS, steps)


def _dark_colours(name: str, count: int) -> Colormap:
    shares = np.linspace(0, _DARK, max(count, 1))
    return ListedColormap(matplotlib.colormaps[name](shares))


def layer_bar(figure: Figure, layers: list[int]) -> None:
    """Add a bar that says which colour is which layer."""
    if layers:
        names = [str(layer) for layer in layers]
        _discrete_bar(figure, layer_colours(len(layers)), "layer", names)


def step_bar(figure: Figure, steps: list[int]) -> None:
    """Add a bar that says which colour is which step."""
    names = [short(step) for step in steps]
    _discrete_bar(figure, step_colours(len(steps)), "step", names)


def _discrete_bar(figure: Figure, colours: Colormap, label: str, names: list[str]) -> None:
    """Add a bar with a block of one colour for each name."""
    count = len(names)
    # Tick i then stands in the middle of block i.
    bounds = np.arange(count + 1) - 0.5
    norm = BoundaryNorm(bounds, count)
    bar = _add_bar(figure, ScalarMappable(norm, colours))
    bar.set_label(label)
    ticks = thin_ticks(range(count), most=12)
    bar.set_ticks(ticks, labels=[names[i] for i in ticks])
    bar.minorticks_off()


def _add_bar(figure: Figure, colours: ScalarMappable) -> Colorbar:
    """Add a bar of one width beside all panels, however high the figure is."""
    bar = figure.colorbar(colours, ax=figure.axes, aspect=10 * figure.get_figheight())
    _even_ticks(bar.ax)
    return bar


def save(figure: Figure, path: Path) -> Path:
    """Write the figure in the format of the path's ending, without a date, and return the path.

    Raises:
        UserError: the ending is not one of `FORMATS`.
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise UserError(f'{path} should end in .{", .".join(FORMATS)}, not "{path.suffix}"')
    with replacing(path) as draft, draft.open("wb") as file:
        write(figure, file, ending)
    return path


def write(figure: Figure, file: BinaryIO, ending: str) -> None:
    """Write the figure in one of `FORMATS` into an open file, without a date."""
    # The layout measures the texts when saving, so they must be final.
    fit_fonts(figure)
    with matplotlib.rc_context(_STYLE):
        # The salt of an SVG's ids is read when saving.
        figure.savefig(file, format=ending, dpi=_DPI, metadata=_NO_DATE[ending])


def shared_norm(rows: pd.DataFrame, values: pd.Series) -> Normalize | None:
    """Return one scale of colours for all panels of a figure, so that they can be compared.

    It is None if no value is known.
    """
    if values.isna().all():
        return None
    scale = LogNorm if is_wide(rows, values.dropna().to_frame()) else Normalize
    return scale(float(values.min()), float(values.max()))


def value_bar(
    figure: Figure, norm: Normalize | None, label: str, cmap: str = VALUE_COLOURS
) -> None:
    """Add the one bar of colours of all panels, if there is a scale of colours."""
    if norm is not None:
        bar = _add_bar(figure, ScalarMappable(norm, cmap))
        bar.set_label(wrap_text(figure, label))


def draw_cells(
    axes: Axes, values: pd.DataFrame, norm: Normalize | None, cmap: str = VALUE_COLOURS
) -> None:
    """Draw a table as cells, its first row lowest; cells without a value stay hatched.

    Rows are layers, layers and heads, or steps; columns are steps or layers.
    """
    _hatch(axes)
    axes.grid(visible=False)
    axes.imshow(
        values.to_numpy(),
        aspect="auto",
        origin="lower",
        interpolation="none",
        norm=norm,
        cmap=cmap,
    )
    columns = thin_ticks(range(values.shape[1]))
    axes.set_xticks(columns, [short(int(values.columns[i])) for i in columns])
    if "layer" in values.index.names:
        _label_layers(axes, [int(layer) for layer in values.index.get_level_values("layer")])
    else:
        rows = thin_ticks(range(values.shape[0]), most=8)
        axes.set_yticks(rows, [short(int(values.index[i])) for i in rows])


def _hatch(axes: Axes) -> None:
    """Hatch the background, which shows through cells without a value."""
    axes.set_facecolor("0.92")
    whole = Rectangle((0, 0), 1, 1, transform=axes.transAxes, hatch="////", fill=False)
    whole.set(color="0.7", zorder=0)
    axes.add_patch(whole)


def _label_layers(axes: Axes, layer_of_row: list[int]) -> None:
    """Label the middle of each layer's rows, and draw lines between layers of several rows."""
    rows_of_layer = Counter(layer_of_row)
    layers = list(rows_of_layer)
    middles, borders, start = [], [], 0
    for count in rows_of_layer.values():
        middles.append(start + (count - 1) / 2)
        start += count
        borders.append(start - 0.5)
    ticks = thin_ticks(middles, most=12)
    names = [layer_name(layers[i]) for i in ticks]
    axes.set_yticks([middles[i] for i in ticks], names)
    if len(layers) < len(layer_of_row):
        axes.hlines(borders[:-1], *axes.get_xlim(), color="white", linewidth=1)


def layer_name(layer: int) -> str:
    """Write a layer's number, or a dash for modules outside the layers."""
    return "-" if layer == OUTSIDE else str(layer)
