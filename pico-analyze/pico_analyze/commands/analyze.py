"""pico-analyze run and report: measure a source, and write table, figures and report."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pico_contract.codec import write_text
from pico_contract.directories import check_directory
from pico_contract.errors import UserError
from pico_contract.layout import AnalysisLayout

from pico_analyze.commands.code_record import code_record
from pico_analyze.commands.location import (
    analysis_location,
    find_analysis,
    note_on_location,
    notes_of,
    record_owner,
)
from pico_analyze.commands.progress import Say, show_progress, warnings_as_lines
from pico_analyze.config.analysis import AnalysisConfig, load, to_yaml

if TYPE_CHECKING:
    import pandas as pd

    from pico_analyze.config.parts import Asked
    from pico_analyze.engine.references import ReferenceChoice
    from pico_analyze.sources.base import Source


def run_analysis(config: AnalysisConfig, source: str, say: Say) -> list[Path]:
    """Measure, write table, configuration, figures and report, and return their paths.

    Args:
        config: the analysis; its files go to `analysis_location`.
        source: name of the configuration's origin, for messages.
        say: called with each line of progress, notes and warnings.
    """
    from pico_analyze import table
    from pico_analyze.commands.plot import draw
    from pico_analyze.config.parts import parts_of
    from pico_analyze.metrics.registry import resolve
    from pico_analyze.sources.open import open_source

    run = open_source(config.run, config.disk_gib)
    other = (
        None
        if config.reference_run is None
        else open_source(config.reference_run, config.disk_gib)
    )
    try:
        # Before anything is measured, so that a mistyped metric fails at once.
        for part in parts_of(config):
            resolve(part.metrics)
    except UserError as error:
        raise UserError(f"{source}: metrics: {error}") from None
    layout = analysis_location(run, config.name, config.out)
    check_directory(layout.root)
    for note in [*notes_of(run), *note_on_location(run, config.name, layout, config.out)]:
        say(f"note: {note}")
    frame = table.joined(_tables(run, other, config, layout, say))
    record_owner(layout, run)
    table.write(frame, layout)
    write_text(layout.config, to_yaml(config))
    write_text(layout.code, json.dumps(code_record(config), indent=2) + "\n")
    metrics = _drawn_metrics(config, frame)
    figures = draw(frame, layout, metrics, config.figures.heads, config.figures.formats)
    files = [layout.table, layout.table_csv, layout.config, layout.code]
    return [*files, *figures, _write_report(run, frame, layout, config)]


def _tables(
    run: Source, other: Source | None, config: AnalysisConfig, layout: AnalysisLayout, say: Say
) -> list[pd.DataFrame]:
    """Measure each part of the analysis, and return its table."""
    from pico_analyze.components.omissions import omissions
    from pico_analyze.config.parts import measurable_parts, parts_of, steps_of
    from pico_analyze.engine.measure import measure

    measure_part = partial(
        measure,
        steps=steps_of(config, run, say),
        null_draws=config.null_draws if config.null else 0,
        window=config.window,
        dense_circuits=config.dense_circuits,
        cache=layout.cache,
    )
    tables = []
    with warnings_as_lines(say):
        for part in measurable_parts(parts_of(config), run, say):
            with show_progress(say) as progress:
                frame = measure_part(
                    run,
                    part.metrics,
                    part.components,
                    kinds=part.kinds,
                    splits=part.splits,
                    reference=_reference(config, part, other),
                    progress=progress,
                )
            tables.append(frame)
    sentences: dict[str, None] = {}
    for part in parts_of(config):
        sentences |= dict.fromkeys(omissions(run, part.components))
    for sentence in sentences:
        say(f"note: {sentence}")
    return tables


def _reference(config: AnalysisConfig, part: Asked, other: Source | None) -> ReferenceChoice:
    """Combine `reference`, `reference_run` and `across` into the reference that `measure` takes."""
    if config.across is not None:
        if other is not None or part.reference is not None:
            raise UserError(
                f"across={config.across} compares each step with itself: leave out reference and reference_run"
            )
        return config.across
    if other is None:
        return part.reference
    return other if part.reference is None else (other, part.reference)


def report_run(path: Path, name: str, out: Path | None = None) -> Path:
    """Write the report of a measured analysis, with the figures that its configuration names.

    Raises:
        UserError: no such run, or no such analysis (with the nearest).
    """
    from pico_analyze import table
    from pico_analyze.sources.open import open_source

    run = open_source(path)
    layout = find_analysis(run, name, out)
    return _write_report(run, table.read(layout.table), layout, load(layout.config))


def _drawn_metrics(config: AnalysisConfig, frame: pd.DataFrame) -> list[str] | None:
    """Choose the metrics to draw: those asked for, else those of parts that were measured."""
    if config.figures.metrics is not None:
        return config.figures.metrics
    metrics: dict[str, None] = {}
    for part in config.parts or ():
        metrics |= dict.fromkeys(part.metrics or ())
    measured = set(frame["metric"])
    return [metric for metric in metrics if metric in measured] or config.metrics


def _write_report(
    run: Source, frame: pd.DataFrame, layout: AnalysisLayout, config: AnalysisConfig
) -> Path:
    from pico_analyze.report import run as report

    metrics = _drawn_metrics(config, frame)
    write_text(layout.report, report.render(run, frame, metrics, config.figures.heads))
    return layout.report
