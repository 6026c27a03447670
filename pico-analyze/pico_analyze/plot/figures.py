"""The forms in which a metric is drawn, and the figures drawn from a table, for files and reports.

To add a figure, write its function in a module of this room and one `Form` in `FORMS`; to change a
caption, edit `how_to_read` there. Figures of comparisons and their captions are in `arms.py`.
"""

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
class Form:
    """One way to draw a metric, and its words in a report.

    Attributes:
        name: the end of the file's name, and what `figure(form=...)` takes.
        draw: function of the data and the number of panels side by side.
        applies_to: whether the form shows something of the data; `draw_figures` skips it if not.
        title: the end of the heading in a report.
        how_to_read: the caption in a report, before what the metric says.
    """

    name: str
    draw: Callable[[PlotData, int], Figure]
    applies_to: Callable[[PlotData], bool]
    title: str
    how_to_read: str


@dataclass(frozen=True)
class NamedFigure:
    """A drawn figure, the name of its form, its words, and its data; None for the overview."""

    form: str
    figure: Figure
    title: str
    how_to_read: str
    subject: PlotData | None = None

    @property
    def stem(self) -> str:
        """The name of its file without the ending."""
        return f"{self.subject.stem}_{self.form}" if self.subject else self.form


def _is_over_steps(data: PlotData) -> bool:
    return data.between is None


def _has_heads(data: PlotData) -> bool:
    return _is_over_steps(data) and bool(data.rows["head"].notna().any())


def _has_several_layers(data: PlotData) -> bool:
    return _is_over_steps(data) and data.rows["layer"].nunique() > 1


def _converges(data: PlotData) -> bool:
    return _is_over_steps(data) and over_layers.ends_at_its_reference(data)


FORMS = (
    Form(
        name="lines",
        draw=over_steps.lines,
        applies_to=_is_over_steps,
        title="over steps",
        how_to_read="One panel a component, one line a layer, dark for the first. The axis of steps is linear up to "
        "the first observed step and logarithmic from there, since most happens early; a gap is a step without a "
        "value.",
    ),
    Form(
        name="map",
        draw=over_steps.heatmap,
        applies_to=_is_over_steps,
        title="as a map",
        how_to_read="The same numbers as colours, layers upwards and steps to the right: a vertical edge is a moment "
        "when all layers change, a horizontal one a layer that differs from its neighbours. Hatched: no value.",
    ),
    Form(
        name="heads",
        draw=lambda data, columns: over_steps.head_map(data),
        applies_to=_has_heads,
        title="head by head",
        how_to_read="The same, head by head: a row that differs within a layer is a head of its own kind.",
    ),
    Form(
        name="layers",
        draw=over_layers.by_depth,
        applies_to=_has_several_layers,
        title="over layers",
        how_to_read="The same against depth, one line for each of a few steps, dark for the first: what the layers "
        "have in common at the start and how they part. Dots are single heads at the last step.",
    ),
    Form(
        name="convergence",
        draw=lambda data, columns: over_layers.convergence(data),
        applies_to=_converges,
        title="when it settled",
        how_to_read="From which observed step on the similarity to the last step stays at 0.9 or above: layers with "
        "smaller numbers settled earlier. The steps observed decide how fine this can be. Grey: a value is lacking.",
    ),
    Form(
        name="between_steps",
        draw=similarity.between_steps,
        applies_to=lambda data: data.between == "steps",
        title="as matrices",
        how_to_read="Each cell compares a step (upwards) with another (to the right), all panels in the same colours: "
        "a block of one colour beside the slope is a phase in which little changes, an edge a step that left what was "
        "before. White: a step with itself, or, where the order matters, with a later one. Hatched: no value.",
    ),
    Form(
        name="between_layers",
        draw=similarity.between_layers,
        applies_to=lambda data: data.between == "layers",
        title="as matrices",
        how_to_read="Each cell compares a layer (upwards) with another (to the right), all panels in the same "
        "colours, at a few steps from left to right: a block of one colour beside the slope is layers in a row that "
        "say much the same. White: a layer with itself, or, where the order matters, with a later one. Hatched: no "
        "value.",
    ),
)
"""All forms of a metric, in the order in which they are drawn."""

_OVERVIEW_HOW_TO_READ = (
    "A few telling quantities over steps, each line the mean over the plain modules of one layer: lines that bend "
    "together say that the layers learn at the same time, a bend in one panel before another which came first."
)


def figure(
    frame: pd.DataFrame, metric: str, kind: str, split: str | None = None, form: str = "lines"
) -> Figure:
    """Draw one figure of a measurement table, for a notebook.

    Args:
        frame: the table.
        metric: its name in the table.
        kind: weights, gradients, activations or updates.
        split: of the kind; may be left out if the table holds one only.
        form: the name of one of `FORMS`.

    Raises:
        UserError: no such form, or no such rows in the table, with the nearest.
    """
    by_name = {known.name: known for known in FORMS}
    if form not in by_name:
        raise UserError(f'there is no form "{form}" of figures{did_you_mean(form, by_name)}')
    return by_name[form].draw(plot_data(frame, metric, kind, split), COLUMNS)


def draw_figures(
    frame: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    heads: bool = False,
    columns: int = COLUMNS,
) -> Iterator[NamedFigure]:
    """Draw `metrics` in each form that applies, one figure at a time.

    By default the metrics are a telling few, after an overview of them. `heads` adds the maps head
    by head.
    """
    subjects = all_plot_data(frame, metrics)
    if metrics is None and any(data.between is None for data in subjects):
        overview = over_steps.overview(frame)
        yield NamedFigure("overview", overview, "Overview", _OVERVIEW_HOW_TO_READ)
    forms = [form for form in FORMS if heads or form.name != "heads"]
    for data in subjects:
        for form in forms:
            if form.applies_to(data):
                title = f"{data.quantity}: {data.object}, {form.title}"
                drawn = form.draw(data, columns)
                yield NamedFigure(form.name, drawn, title, form.how_to_read, data)
