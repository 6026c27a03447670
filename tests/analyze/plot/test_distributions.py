"""Distributions of entries, drawn beside a bell curve."""

from __future__ import annotations

from pico_analyze.engine.distributions import distributions
from pico_analyze.plot import distributions as plot_distributions
from pico_analyze.sources.run import Run


def test_the_figure_has_a_panel_a_component_and_a_line_a_step(run: Run) -> None:
    figure = plot_distributions.distributions(distributions(run, ["v_proj", "down_proj"], "gradients", "val"))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["self_attn.v_proj", "mlp.down_proj"]
    assert [len(axes.lines) for axes in panels] == [1 + 3, 1 + 3]
    assert "gradients (val) of layer 1" in figure.get_suptitle()
