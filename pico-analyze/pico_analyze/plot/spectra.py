"""Singular values over steps: how a spectrum takes its shape."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from pico_analyze.plot.panels import COLUMNS, panels_of, step_bar, step_colours


def spectra(values: pd.DataFrame, columns: int = COLUMNS) -> Figure:
    """Singular values by index, largest first, a line for each step, one panel a component;
    circuits: mean over heads.

    The rows are those of `pico_analyze.engine.spectra.spectra`, of one layer. Exact zeros, which a
    logarithmic axis cannot show, are left out.
    """
    steps = sorted(int(step) for step in values["step"].unique())
    layer = values["layer"].dropna().unique()
    where = f" of layer {layer[0]}" if len(layer) == 1 else ""
    title = f"singular values: {values['kind'].iloc[0]}{where}, run {values['run'].iloc[0]}"
    figure, panels = panels_of(title, values, columns)
    colours = step_colours(len(steps))
    for axes, table in panels:
        means = table.groupby(["step", "index"])["value"].mean()
        for step, line in means[means > 0].groupby(level="step"):
            places = line.index.get_level_values("index")
            axes.plot(
                places, line.to_numpy(), color=colours(steps.index(int(str(step)))), linewidth=1.2
            )
        axes.set_yscale("log")
    figure.supylabel("singular value")
    figure.supxlabel("index, largest first")
    step_bar(figure, steps)
    return figure
