"""What the commands do, for a notebook as well: each takes plain values and gives back paths or lines."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pico_contract.codec import write_text
from pico_contract.directories import check_directory
from pico_contract.errors import UserError
from pico_contract.layout import AnalysisLayout, RunLayout
from pico_contract.names import parse, stack_prefixes
from pico_contract.terminal import one_line

from pico_analyze.analysis_place import measured, note_on_place, place, record_owner
from pico_analyze.code_record import code_record
from pico_analyze.config import AnalysisConfig, load, to_yaml

if TYPE_CHECKING:
    import pandas as pd

    from pico_analyze.findings import Audit
    from pico_analyze.metrics import Metric
    from pico_analyze.sources import Source

Say = Callable[[str], None]


def run_analysis(config: AnalysisConfig, source: str, say: Say) -> list[Path]:
    """Measure, and write table, configuration, figures and report into `place`; the paths of them.

    `source` is where the configuration came from, for messages; `say` gets progress and warnings, line by line.
    """
    from pico_analyze import table
    from pico_analyze.commands_plot import draw
    from pico_analyze.metrics import resolve
    from pico_analyze.parts import parts_of
    from pico_analyze.sources.open import open_source

    run = open_source(config.run, config.disk_gib)
    other = None if config.reference_run is None else open_source(config.reference_run, config.disk_gib)
    try:
        for part in parts_of(config):
            resolve(part.metrics)
    except UserError as error:
        raise UserError(f"{source}: metrics: {error}") from None
    layout = place(run, config.name, config.out)
    check_directory(layout.root)
    for note in [*_notes(run), *note_on_place(run, config.name, layout, config.out)]:
        say(f"note: {note}")
    frame = table.joined(_tables(run, other, config, layout, say))
    record_owner(layout, run)
    table.write(frame, layout)
    write_text(layout.config, to_yaml(config))
    write_text(layout.code, json.dumps(code_record(config), indent=2) + "\n")
    figures = draw(frame, layout, _drawn(config, frame), config.figures.heads, config.figures.formats)
    files = [layout.table, layout.table_csv, layout.config, layout.code]
    return [*files, *figures, _write_report(run, frame, layout, config)]


def _tables(
    run: Source, other: Source | None, config: AnalysisConfig, layout: AnalysisLayout, say: Say
) -> list[pd.DataFrame]:
    """What is measured, part by part."""
    from pico_analyze.engine import measure
    from pico_analyze.omissions import omissions
    from pico_analyze.parts import held, parts_of, steps_of

    steps = steps_of(config, run, say)
    measure_part = partial(
        measure,
        reference_run=other,
        across=config.across,
        null=config.null,
        null_draws=config.null_draws,
        window=config.window,
        form_circuits=config.form_circuits,
        cache=layout.cache,
    )
    tables = []
    with _warnings_as_lines(say):
        for part in held(parts_of(config), run, say):
            chosen = part.metrics, part.components, steps, part.kinds, part.splits, part.reference
            with _progress(say) as progress:
                tables.append(measure_part(run, *chosen, progress))
    for sentence in dict.fromkeys(chain(*(omissions(run, part.components) for part in parts_of(config)))):
        say(f"note: {sentence}")
    return tables


def report_run(path: Path, name: str, out: Path | None = None) -> Path:
    """Write the report of an analysis that was measured before, with the figures that its configuration names.

    Raises:
        UserError: no such run, no such analysis (with the nearest).
    """
    from pico_analyze import table
    from pico_analyze.sources.open import open_source

    run = open_source(path)
    layout = measured(run, name, out)
    return _write_report(run, table.read(layout.table), layout, load(layout.config))


def _drawn(config: AnalysisConfig, frame: pd.DataFrame) -> list[str] | None:
    """Of parts those that could be measured."""
    if config.figures.metrics is not None:
        return config.figures.metrics
    of_parts = dict.fromkeys(metric for part in config.parts or () for metric in part.metrics or ())
    return [metric for metric in of_parts if (frame["metric"] == metric).any()] or config.metrics


def _write_report(run: Source, frame: pd.DataFrame, layout: AnalysisLayout, config: AnalysisConfig) -> Path:
    from pico_analyze import report

    write_text(layout.report, report.render(run, frame, _drawn(config, frame), config.figures.heads))
    return layout.report


def audit_run(path: Path, hashes: bool, say: Say) -> tuple[list[str], bool]:
    """A line for each finding of the audit, for what it did not cover and to sum up, and whether the run is sound.

    Raises:
        UserError: no such run.
    """
    from pico_analyze.audit import audit
    from pico_analyze.sources.open import open_source
    from pico_analyze.sources.run import Run, check_run

    if not RunLayout(path).manifest.is_file():
        source = open_source(path)
        if not isinstance(source, Run):
            return _audit_of_series(source)
    with _progress(say, "read") as progress:
        result = audit(check_run(path).root, hashes, progress)
    lines = [*map(str, result.findings), *(one_line(f"not covered: {p}: {why}") for p, why in result.uncovered.items())]
    return [*lines, _sum_of(result, hashes)], not result.findings


def _audit_of_series(source: Source) -> tuple[list[str], bool]:
    from pico_analyze.audit_series import audit_series

    lines = audit_series(source)
    looked = f"{len(source.steps)} steps, compared with each other by the hashes of their files"
    found = f"{len(lines)} finding{'s' if len(lines) > 1 else ''} in" if lines else "nothing found in"
    return [*lines, f"{found} {looked}; no manifest says what they should be"], not lines


def _sum_of(result: Audit, hashes: bool) -> str:
    compared = "every byte was compared with a recorded sha256" if hashes else "the size alone was compared"
    looked = f"{result.directories} checkpoints and snapshots, {result.evaluations} evaluations; of"
    looked += f" {len(result.compared)} files {compared}"
    if result.uncovered:
        looked += f"; not covered: {len(result.uncovered)} (named above)"
    count = len(result.findings)
    return f"{count} finding{'s' if count > 1 else ''} in {looked}" if count else f"sound: {looked}"


def holdings(path: Path) -> list[str]:
    """What a source holds, as lines: status, geometry, steps, kinds by split with their modules, what is damaged."""
    from pico_analyze.omissions import described
    from pico_analyze.sources import KINDS
    from pico_analyze.sources.model_config import describe
    from pico_analyze.sources.open import open_source

    run = open_source(path)
    lines = [
        f"run {run.name}{_progress_of(run)}",
        f"model: {describe(run.model)}",
        f"observed steps ({len(run.steps)}): {', '.join(map(str, run.steps))}",
    ]
    for kind in KINDS:
        lines += _lines_of_kind(run, kind)
    lines += [*described(run), *_low_rank_lines(run)]
    lines += [f"note: {note}" for note in _notes(run)]
    lines += [f"damaged at step {step}: {sentence}" for step, found in run.damaged.items() for sentence in found]
    return lines


def _notes(run: Source) -> list[str]:
    """What a source says of what was left out of it."""
    return list(getattr(run, "notes", ()))


def _progress_of(run: Source) -> str:
    """How far training came, where the source is a run that records it."""
    manifest = getattr(run, "manifest", None)
    if manifest is None:
        return ""
    return f": {manifest.status} at step {manifest.step} of {manifest.total_steps}, method {manifest.method}"


def _lines_of_kind(run: Source, kind: str) -> list[str]:
    from pico_analyze.components import component_of

    steps: dict[str | None, list[int]] = {}
    components: dict[str | None, dict[str, None]] = {}
    for step in run.steps:
        for split in run.splits(step, kind):
            steps.setdefault(split, []).append(step)
            modules = run.modules(step, kind, split)
            prefixes = stack_prefixes(modules)
            found = dict.fromkeys(component_of(name, prefixes) for name in modules)
            components[split] = components.get(split, {}) | found
    return [
        f"{kind}{f' ({split})' if split else ''} at {len(at)} steps: {', '.join(components[split])}"
        for split, at in steps.items()
    ]


def _low_rank_lines(run: Source) -> list[str]:
    """At how many steps which components are low-rank, with the ranks at the last such step."""
    from pico_analyze.components import fitting

    factors = {
        step: found
        for step in run.steps
        if run.splits(step, "weights") and (found := fitting("lora_A", run.modules(step, "weights")))
    }
    if not factors:
        return []
    last = max(factors)
    ranks: dict[str, set[int]] = {}
    for name in factors[last]:
        ranks.setdefault(parse(name).component.removesuffix(".lora_A"), set()).add(
            len(run.tensor(last, "weights", name))
        )
    of = ", ".join(f"{name} ({' and '.join(map(str, sorted(found)))})" for name, found in ranks.items())
    return [f"low-rank at {len(factors)} steps (rank at step {last}): {of}"]


def known_metrics() -> list[str]:
    """A line for each metric: name, arity, kinds, unit, range, source, and what it cannot be compared with."""
    from pico_analyze.metrics import METRICS

    width = max(map(len, METRICS))
    return [_line_of_metric(name.ljust(width), metric) for name, metric in METRICS.items()]


def _line_of_metric(name: str, metric: Metric) -> str:
    of = "one matrix" if metric.arity == 1 else "a pair"
    line = f"{name}  {of} of {'|'.join(metric.kinds)}; {metric.unit}, {metric.range}; {source_of(metric)}"
    return f"{line}; {metric.caution}" if metric.caution else line


def source_of(metric: Metric) -> str:
    """The paper or book that the docstring of a metric's function names."""
    return " ".join((metric.fn.__doc__ or "").partition("Source: ")[2].split()).rstrip(".")


@contextlib.contextmanager
def _warnings_as_lines(say: Say) -> Iterator[None]:
    """Warnings as `warning: sentence`, without the line of code that raised them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                say(f"warning: {message}")


@contextlib.contextmanager
def _progress(say: Say, done_word: str = "measured") -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line at each quarter elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:

        def quarter(done: int, all_: int) -> None:
            if 4 * done // all_ > 4 * (done - 1) // all_:
                say(f"{done_word} {done} of {all_}")

        yield quarter
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(done_word, total=None)
        yield lambda done, all_: bar.update(task, completed=done, total=all_)
