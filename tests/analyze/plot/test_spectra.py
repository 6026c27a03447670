"""Singular values over steps, drawn."""

from __future__ import annotations

import pytest
from pico_analyze.engine.spectra import spectra
from pico_analyze.plot import spectra as plot_spectra
from pico_analyze.sources.run import Run


def test_the_figure_has_a_line_for_each_step(run: Run) -> None:
    found = spectra(run, ["v_proj", "ov_circuit"], layers=[0])
    figure = plot_spectra.spectra(found)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["self_attn.v_proj", "ov_circuit, 4 heads"]
    for axes in panels.values():
        assert len(axes.lines) == 3
        assert axes.get_yscale() == "log"
    values = found[(found["component"] == "self_attn.v_proj") & (found["step"] == 2)]["value"]
    assert panels["self_attn.v_proj"].lines[-1].get_ydata() == pytest.approx(values.tolist())
    assert figure.get_suptitle() == "singular values: weights of layer 0, run small"
