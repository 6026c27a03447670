"""Which figures are drawn of a table: the overview, then those of each subject, for files and for
the report alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from pico_contract.errors import UserError, did_you_mean

from pico_analyze.plot import over_layers, over_steps, similarity
from pico_analyze.plot.data import PlotData, all_plot_data, plot_data
from pico_analyze.plot.panels import COLUMNS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class NamedFigure:
    """A figure, which form it has (a key of the captions), and what it is of; None for the
    overview."""

    form: str
    figure: Figure
    subject: PlotData | None = None

    @property
    def stem(self) -> str:
        """Name of its file without the ending."""
        return f"{self.subject.stem}_{self.form}" if self.subject else self.form


FORMS: dict[str, Callable[[PlotData], Figure]] = {
    "lines": over_steps.lines,
    "map": over_steps.heatmap,
    "heads": over_steps.head_map,
    "layers": over_layers.by_depth,
    "convergence": over_layers.convergence,
    "between_steps": similarity.between_steps,
    "between_layers": similarity.between_layers,
}
"""What a metric of a table can be drawn as; glossary.py of the report says how each is read."""


def figure(
    frame: pd.DataFrame, metric: str, kind: str, split: str | None = None, form: str = "lines"
) -> Figure:
    """One figure of a measurement table, for a notebook: `metric` of `kind` (and `split`) in one of
    `FORMS`.

    Raises:
        UserError: no such form, or no such rows in the table, with the nearest.
    """
    if form not in FORMS:
        raise UserError(f'there is no form "{form}" of figures{did_you_mean(form, FORMS)}')
    return FORMS[form](plot_data(frame, metric, kind, split))


def draw_figures(
    frame: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    heads: bool = False,
    columns: int = COLUMNS,
) -> Iterator[NamedFigure]:
    """The figures of `metrics` (a telling few, and an overview of them, by default), one at a
    time."""
    shown = all_plot_data(frame, metrics)
    if metrics is None and any(one.between is None for one in shown):
        yield NamedFigure("overview", over_steps.overview(frame))
    for one in shown:
        if one.between == "layers":
            yield NamedFigure("between_layers", similarity.between_layers(one, columns), one)
        elif one.between == "steps":
            yield NamedFigure("between_steps", similarity.between_steps(one, columns), one)
        else:
            yield from _over_steps(one, heads, columns)


def _over_steps(one: PlotData, heads: bool, columns: int) -> Iterator[NamedFigure]:
    yield NamedFigure("lines", over_steps.lines(one, columns), one)
    yield NamedFigure("map", over_steps.heatmap(one, columns), one)
    if heads and one.rows["head"].notna().any():
        yield NamedFigure("heads", over_steps.head_map(one), one)
    if one.rows["layer"].nunique() > 1:
        yield NamedFigure("layers", over_layers.by_depth(one, columns), one)
    if over_layers.ends_at_its_reference(one):
        yield NamedFigure("convergence", over_layers.convergence(one), one)
