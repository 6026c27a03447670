"""pico-analyze inspect and metrics: the contents of a source and the known metrics, as lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pico_contract.names import parse, stack_prefixes

from pico_analyze.commands.location import notes_of

if TYPE_CHECKING:
    from pico_analyze.metrics.registry import Metric
    from pico_analyze.sources.base import Source


def holdings(path: Path) -> list[str]:
    """What a source holds, as lines: status, geometry, steps, kinds by split with their modules,
    what is damaged."""
    from pico_contract.kinds import KINDS

    from pico_analyze.components.omissions import coverage_lines
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
    lines += [*coverage_lines(run), *_low_rank_lines(run)]
    lines += [f"note: {note}" for note in notes_of(run)]
    lines += [
        f"damaged at step {step}: {sentence}"
        for step, found in run.damaged.items()
        for sentence in found
    ]
    return lines


def _progress_of(run: Source) -> str:
    """How far training came, where the source is a run that records it."""
    manifest = getattr(run, "manifest", None)
    if manifest is None:
        return ""
    return f": {manifest.status} at step {manifest.step} of {manifest.total_steps}, method {manifest.method}"


def _lines_of_kind(run: Source, kind: str) -> list[str]:
    from pico_analyze.components.select import component_of

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
    from pico_analyze.components.select import matching_modules

    factors = {
        step: found
        for step in run.steps
        if run.splits(step, "weights")
        and (found := matching_modules("lora_A", run.modules(step, "weights")))
    }
    if not factors:
        return []
    last = max(factors)
    ranks: dict[str, set[int]] = {}
    for name in factors[last]:
        ranks.setdefault(parse(name).component.removesuffix(".lora_A"), set()).add(
            len(run.tensor(last, "weights", name))
        )
    of = ", ".join(
        f"{name} ({' and '.join(map(str, sorted(found)))})" for name, found in ranks.items()
    )
    return [f"low-rank at {len(factors)} steps (rank at step {last}): {of}"]


def known_metrics() -> list[str]:
    """A line for each metric: name, arity, kinds, unit, range, source, and what it cannot be
    compared with."""
    from pico_analyze.metrics.registry import METRICS

    width = max(map(len, METRICS))
    return [_line_of_metric(name.ljust(width), metric) for name, metric in METRICS.items()]


def _line_of_metric(name: str, metric: Metric) -> str:
    of = "one matrix" if metric.arity == 1 else "a pair"
    line = f"{name}  {of} of {'|'.join(metric.kinds)}; {metric.unit}, {metric.range}; {source_of(metric)}"
    return f"{line}; {metric.caution}" if metric.caution else line


def source_of(metric: Metric) -> str:
    """The paper or book that the docstring of a metric's function names."""
    return " ".join((metric.fn.__doc__ or "").partition("Source:")[2].split()).rstrip(".")
