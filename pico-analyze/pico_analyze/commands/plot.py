"""pico-analyze plot: draw figures from the table of an analysis, and some from its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pico_contract.layout import AnalysisLayout

from pico_analyze.commands.location import find_analysis

if TYPE_CHECKING:
    import pandas as pd

    from pico_analyze.sources.base import Source


def plot_run(
    path: Path,
    name: str,
    metrics: Sequence[str] | None,
    heads: bool = False,
    formats: Sequence[str] = ("png",),
    out: Path | None = None,
    spectra: bool = False,
    distributions: bool = False,
) -> list[Path]:
    """Draw the figures of a measured analysis, and return their paths.

    `spectra` adds singular values over steps, and `distributions` adds those of entries. Neither is
    part of the table, so that tensors are read.

    Raises:
        UserError: no such run, no such analysis (with the nearest), or a metric that the table does
            not contain.
    """
    from pico_analyze import table
    from pico_analyze.sources.open import open_source

    source = open_source(path)
    layout = find_analysis(source, name, out)
    figures = draw(table.read(layout.table), layout, metrics, heads, formats)
    if spectra:
        figures += _draw_spectra(source, layout, formats)
    if distributions:
        figures += _draw_distributions(source, layout, formats)
    return figures


def _draw_spectra(source: Source, layout: AnalysisLayout, formats: Sequence[str]) -> list[Path]:
    from pico_analyze.engine.spectra import spectra
    from pico_analyze.plot import panels
    from pico_analyze.plot import spectra as plot_spectra

    figure = plot_spectra.spectra(spectra(source))
    return [
        panels.save(figure, layout.figures / f"weights_spectra.{ending}") for ending in formats
    ]


def _draw_distributions(
    source: Source, layout: AnalysisLayout, formats: Sequence[str]
) -> list[Path]:
    from pico_analyze.engine.distributions import distributions
    from pico_analyze.plot import distributions as plot_distributions
    from pico_analyze.plot import panels

    paths = []
    for kind, split in (("weights", None), ("gradients", "val")):
        if any(split in source.splits(step, kind) for step in source.steps):
            drawn = plot_distributions.distributions(
                distributions(source, kind=kind, split=split)
            )
            stem = "_".join(filter(None, (kind, split, "distributions")))
            paths += [
                panels.save(drawn, layout.figures / f"{stem}.{ending}") for ending in formats
            ]
    return paths


def draw(
    frame: pd.DataFrame,
    layout: AnalysisLayout,
    metrics: Sequence[str] | None,
    heads: bool,
    formats: Sequence[str],
) -> list[Path]:
    """Draw each of `metrics` (a telling few by default), with `heads` also head by head."""
    from pico_analyze.plot import panels
    from pico_analyze.plot.figures import draw_figures

    return [
        panels.save(drawn.figure, layout.figures / f"{drawn.stem}.{ending}")
        for drawn in draw_figures(frame, metrics, heads)
        for ending in formats
    ]
