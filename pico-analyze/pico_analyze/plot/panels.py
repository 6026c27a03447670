"""What every figure is made of: panels, labels that fit, axes of steps, colours of layers, files
without a date.

The same table gives the same bytes: no dates, no global state.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from pico_contract.codec import replacing
from pico_contract.errors import UserError

from pico_analyze.plot.data import OUTSIDE, PlotData, heads_of, is_wide
from pico_analyze.plot.fonts import fit_fonts

FORMATS = ("png", "svg", "pdf")
STEP_AXIS = "step (linear up to the first observed, then logarithmic)"
COLUMNS = 4
TITLE = 10  # of a panel, points
_TICK = 8  # labels of ticks, points
_WIDTH, HEIGHT, _DPI = 2.9, 2.3, 110  # of a panel, inches; dots per inch
LETTERS = 11  # of a title, to the inch
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "svg.hashsalt": "pico",
    "axes.grid": True,
    "grid.alpha": 0.3,
}
_NO_DATE: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
Panel = tuple[Axes, pd.DataFrame]


class _Shown(Figure):
    """A figure that a notebook shows as it would be saved, whether or not pyplot was set up
    there."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        write(self, file, "png")
        return file.getvalue()


def new_figure(rows: int, columns: int, title: str, height: float = HEIGHT) -> Figure:
    """A figure of `rows` x `columns` axes under a title."""
    with matplotlib.rc_context(_STYLE):
        figure = _Shown(
            figsize=(_WIDTH * max(columns, 2), height * rows + 0.9),
            layout=ConstrainedLayoutEngine(h_pad=0.08),
        )
        figure.subplots(rows, columns)
    for axes in figure.axes:
        _even_ticks(axes)
    figure.suptitle(wrap_text(figure, title), parse_math=False)
    return figure


def _even_ticks(axes: Axes) -> None:
    """Labels of one size, those of the minor ticks of logarithmic axes as well, which are made only
    when drawn."""
    axes.tick_params(which="both", labelsize=_TICK)


def title_of(shown: PlotData) -> str:
    """What a figure of one run shows."""
    return f"{shown.quantity}: {shown.object}, run {shown.rows['run'].iloc[0]}"


def panels_of(
    title: str, rows: pd.DataFrame, columns: int = COLUMNS, height: float = HEIGHT
) -> tuple[Figure, list[Panel]]:
    """A figure with one titled panel for each component, in the order of the table, `columns` side
    by side."""
    groups = list(rows.groupby("component", sort=False))
    columns = min(columns, len(groups))
    figure = new_figure(-(-len(groups) // columns), columns, title, height)
    for axes in figure.axes[len(groups) :]:
        axes.remove()
    panels = []
    for axes, (component, table) in zip(figure.axes, groups, strict=True):
        axes.set_title(_broken(f"{component}{heads_of(table)}"), fontsize=TITLE)
        panels.append((axes, table))
    return figure, panels


def _broken(title: str) -> str:
    """In two lines where a panel is too narrow for one."""
    where, dot, last = title.rpartition(".")
    return f"{where}{dot}\n{last}" if len(title) > LETTERS * _WIDTH else title


def label_below(figure: Figure, axis: str, rows: pd.DataFrame) -> None:
    """What the horizontal axis is, and what has no value and why."""
    absent = rows.loc[rows["value"].isna(), "status"].value_counts().sort_index()
    reasons = ", ".join(f"{status}\N{NO-BREAK SPACE}{count}" for status, count in absent.items())
    note = (
        f"gaps: {absent.sum()} of {len(rows)} numbers have no value ({reasons})" if reasons else ""
    )
    figure.supxlabel(f"{axis}\n{wrap_text(figure, note)}".rstrip())


def wrap_text(figure: Figure, text: str) -> str:
    """In as few lines as the figure is wide enough for, of about one length."""
    most = int(LETTERS * figure.get_figwidth())
    lines = len(textwrap.wrap(text, most))
    even = next(width for width in range(1, most + 1) if len(textwrap.wrap(text, width)) <= lines)
    return textwrap.fill(text, even)


def draw_no_data(axes: Axes, table: pd.DataFrame, values: pd.DataFrame) -> bool:
    """Say why, where there is nothing to draw."""
    if values.notna().any(axis=None):
        return False
    why = ", ".join(sorted(table.loc[table["value"].isna(), "status"].unique()))
    axes.text(
        0.5, 0.5, f"no value to draw:\n{why}", transform=axes.transAxes, ha="center", va="center"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    return True


def scale_steps(axes: Axes, steps: list[int]) -> None:
    """Linear from 0 to the first positive step, then logarithmic, with ticks at observed steps that
    leave room."""
    if len(steps) == 1:
        axes.set_xlabel("one step: dots, no line", fontsize=_TICK)
    first = next((step for step in steps if step > 0), 1)
    axes.set_xscale("symlog", linthresh=first, linscale=0.5)
    places = axes.xaxis.get_transform().transform(np.asarray(steps, dtype=float))
    shown = [steps[i] for i in thin_ticks(places.tolist())]
    axes.set_xticks(shown, [short(step) for step in shown])
    axes.set_xticks([], minor=True)


def thin_ticks(places: Sequence[float], most: int = 4) -> list[int]:
    """Indices of ascending `places`, the first and last among them, at least a `most`-th of the
    whole apart."""
    room = (places[-1] - places[0]) / most
    chosen: list[int] = []
    for index in reversed(range(len(places))):
        if not chosen or places[chosen[-1]] - places[index] >= room:
            chosen.append(index)
    return [0, *chosen[-2::-1]]


def short(step: int) -> str:
    """12000 as 12k."""
    return f"{step // 1000}k" if step >= 10_000 and step % 1000 == 0 else str(step)


def pick_evenly(of: list[int], most: int) -> list[int]:
    """First, last and a few between, evenly among those that there are."""
    if len(of) <= most:
        return of
    return [of[round(i * (len(of) - 1) / max(most - 1, 1))] for i in range(most)]


def colours_of(layers: int) -> Colormap:
    """Viridis by layer, less its palest tenth, which is lost on white."""
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(layers, 1))))


def layer_bar(figure: Figure, layers: list[int]) -> None:
    """A bar that says which colour is which layer."""
    if not layers:
        return
    colours = colours_of(len(layers))
    norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
    aspect = 10 * figure.get_figheight()
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=figure.axes, label="layer", aspect=aspect
    )
    shown = thin_ticks(range(len(layers)), most=12)
    _even_ticks(bar.ax)
    bar.set_ticks(shown, labels=[str(layers[i]) for i in shown])
    bar.minorticks_off()


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as the ending of `path` says (png, svg, pdf), without a date, and give the
    path back.

    Raises:
        UserError: another ending.
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise UserError(f'{path} should end in .{", .".join(FORMATS)}, not "{path.suffix}"')
    with replacing(path) as draft, draft.open("wb") as file:
        write(figure, file, ending)
    return path


def write(figure: Figure, file: BinaryIO, ending: str) -> None:
    """Write the figure as png, svg or pdf into an open file, without a date."""
    fit_fonts(figure)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format=ending, dpi=_DPI, metadata=_NO_DATE[ending])


def shared_norm(rows: pd.DataFrame, values: pd.Series) -> Normalize | None:
    """What makes colours of the `values` of all panels of a figure, so that they can be compared;
    None without any."""
    if values.isna().all():
        return None
    scale = LogNorm if is_wide(rows, values.dropna().to_frame()) else Normalize
    return scale(float(values.min()), float(values.max()))


def value_bar(figure: Figure, norm: Normalize | None, label: str, cmap: str | None = None) -> None:
    """One bar of colours for all panels."""
    if norm is not None:
        aspect = 10 * figure.get_figheight()
        bar = figure.colorbar(ScalarMappable(norm, cmap), ax=figure.axes, aspect=aspect)
        bar.set_label(wrap_text(figure, label))
        _even_ticks(bar.ax)


def draw_cells(
    axes: Axes, values: pd.DataFrame, norm: Normalize | None, cmap: str | None = None
) -> None:
    """`values` (layer, layer and head, or step, by step or layer) as cells; null ones hatched."""
    axes.set_facecolor("0.92")
    axes.add_patch(
        Rectangle(
            (0, 0), 1, 1, transform=axes.transAxes, hatch="////", fill=False, color="0.7", zorder=0
        )
    )
    axes.grid(visible=False)
    axes.imshow(
        values.to_numpy(), aspect="auto", origin="lower", interpolation="none", norm=norm, cmap=cmap
    )
    columns = thin_ticks(range(values.shape[1]))
    axes.set_xticks(columns, [short(int(values.columns[i])) for i in columns])
    if "layer" in values.index.names:
        _label_layers(axes, [int(layer) for layer in values.index.get_level_values("layer")])
    else:
        rows = thin_ticks(range(values.shape[0]), most=8)
        axes.set_yticks(rows, [short(int(values.index[i])) for i in rows])


def _label_layers(axes: Axes, layer_of_row: list[int]) -> None:
    """A label at the middle of each layer's rows; a line between layers that have several."""
    layers = list(dict.fromkeys(layer_of_row))
    starts = [layer_of_row.index(layer) for layer in layers]
    middles = [
        start + (layer_of_row.count(layer) - 1) / 2
        for layer, start in zip(layers, starts, strict=True)
    ]
    shown = thin_ticks(middles, most=12)
    axes.set_yticks(
        [middles[i] for i in shown],
        ["-" if layers[i] == OUTSIDE else str(layers[i]) for i in shown],
    )
    if len(layers) < len(layer_of_row):
        axes.hlines(
            [start - 0.5 for start in starts[1:]], *axes.get_xlim(), color="white", linewidth=1
        )


def step_bar(figure: Figure, steps: list[int]) -> None:
    """A bar that says which colour is which step."""
    norm = BoundaryNorm(np.arange(len(steps) + 1) - 0.5, len(steps))
    scale = ScalarMappable(norm, step_colours(len(steps)))
    bar = figure.colorbar(scale, ax=figure.axes, label="step", aspect=10 * figure.get_figheight())
    ticks = thin_ticks(range(len(steps)), most=12)
    _even_ticks(bar.ax)
    bar.set_ticks(ticks, labels=[short(steps[i]) for i in ticks])
    bar.minorticks_off()


def step_colours(steps: int) -> Colormap:
    """Plasma by step, less its palest tenth; layers are viridis."""
    return ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.9, max(steps, 1))))
