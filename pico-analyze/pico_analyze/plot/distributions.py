"""Distributions of entries over steps, with the bell curve that they begin as."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pico_analyze.plot.panels import COLUMNS, panels_of, step_bar, step_colours, wrap_text


def distributions(values: pd.DataFrame, columns: int = COLUMNS) -> Figure:
    """Densities over standard deviations, a line for each step, one panel a component; dashed: a
    normal distribution.

    The rows are those of `pico_analyze.engine.distributions.distributions`, of one layer. Empty
    bins, which a logarithmic axis cannot show, are left out.
    """
    steps = sorted(int(step) for step in values["step"].unique())
    layer = values["layer"].dropna().unique()
    where = f" of layer {layer[0]}" if len(layer) == 1 else ""
    split = next(iter(values["split"].dropna()), "")
    what = f"{values['kind'].iloc[0]}{f' ({split})' if split else ''}{where}, run {values['run'].iloc[0]}"
    figure, panels = panels_of(f"distribution of entries: {what}", values, columns)
    colours = step_colours(len(steps))
    for axes, table in panels:
        bell = np.linspace(-4, 4, 81)
        axes.plot(
            bell,
            np.exp(-(bell**2) / 2) / np.sqrt(2 * np.pi),
            color="0.4",
            linestyle="--",
            linewidth=1,
        )
        for step, line in table[table["density"] > 0].groupby("step"):
            axes.plot(
                line["centre"],
                line["density"],
                color=colours(steps.index(int(str(step)))),
                linewidth=1.2,
            )
        axes.set_yscale("log")
    figure.supylabel("density")
    figure.supxlabel(
        wrap_text(
            figure, "distance from the mean (standard deviations); dashed: a normal distribution"
        )
    )
    step_bar(figure, steps)
    return figure
