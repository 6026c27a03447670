"""Arms over each other, and maps of their differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pico_analyze.commands.compare import open_arms
from pico_analyze.compare import compare
from pico_analyze.plot import arms as plot_arms
from pico_analyze.report import arms as report_arms
from pico_analyze.table import read
from pico_contract.layout import RunLayout


def groups(runs: list[Path]) -> dict[str, list[Path]]:
    return {"full": runs[:2], "low": runs[2:]}


def test_the_overlay_has_a_line_and_a_band_for_each_arm_and_says_which(runs: list[Path]) -> None:
    arms = open_arms([], groups(runs), "default")
    (shown,) = report_arms.plotted(arms, ["per"])
    figure = plot_arms.overlay(shown)
    (axes,) = (one for one in figure.axes if one.get_title())
    assert len(axes.lines) == len(axes.collections) == 2
    full = [read(RunLayout(run).analysis("default").table) for run in runs[:2]]
    means = [frame.groupby("step")["value"].mean() for frame in full]
    assert axes.lines[0].get_ydata() == pytest.approx(((means[0] + means[1]) / 2).tolist())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["full", "low"]
    assert legend.get_title().get_text() == "PER (fraction of full rank): weights, mean over layers"
    FigureCanvasAgg(figure).draw()
    assert legend.get_window_extent().y0 > axes.title.get_window_extent().y1, "the legend lies above the panels"


def test_the_map_of_differences_is_symmetric_and_dots_what_max_t_finds(runs: list[Path]) -> None:
    arms = open_arms([], groups(runs), "default")
    differences = compare(arms)
    assert differences["p_max_t"].isna().all()
    at_steps = report_arms.select(report_arms.by_step(differences, "low"), report_arms.plotted(arms, ["per"])[0])
    (axes,) = (one for one in plot_arms.difference_map(at_steps).axes if one.get_title())
    (dots,) = (line for line in axes.lines if line.get_marker() == "o")
    assert len(dots.get_xdata()) == 0, "two pairs cannot reach 0.05, however far intervals lie from 0"
    differences["p_max_t"] = 0.05
    differences.loc[(differences["step"] == 1) & (differences["layer"] == 0), "p_max_t"] = 0.06
    at_steps = report_arms.select(report_arms.by_step(differences, "low"), report_arms.plotted(arms, ["per"])[0])
    figure = plot_arms.difference_map(at_steps)
    (axes,) = (one for one in figure.axes if one.get_title())
    (image,) = axes.images
    low, high = image.get_clim()
    assert low == -high
    assert np.max(image.get_array()) == pytest.approx(high)
    (dots,) = (line for line in axes.lines if line.get_marker() == "o")
    assert set(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == {(0, 0), (2, 0), (0, 1), (1, 1), (2, 1)}
    assert figure.get_suptitle() == "PER (fraction of full rank): weights, low less full"
