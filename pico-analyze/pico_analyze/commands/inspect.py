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
    """Describe a source in lines: status, geometry, steps, modules by kind and split, damage."""
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
    for step, sentences in run.damaged.items():
        lines += [f"damaged at step {step}: {sentence}" for sentence in sentences]
    return lines


def _progress_of(run: Source) -> str:
    """Say how far training came, if the source is a run that records it."""
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
            names = dict.fromkeys(component_of(name, prefixes) for name in modules)
            components[split] = components.get(split, {}) | names
    lines = []
    for split, split_steps in steps.items():
        label = f"{kind} ({split})" if split else kind
        lines.append(f"{label} at {len(split_steps)} steps: {', '.join(components[split])}")
    return lines


def _low_rank_lines(run: Source) -> list[str]:
    """Count the steps with low-rank components, and name these with their ranks at the last."""
    from pico_analyze.components.select import matching_modules

    factors: dict[int, list[str]] = {}
    for step in run.steps:
        if run.splits(step, "weights"):
            factors[step] = matching_modules("lora_A", run.modules(step, "weights"))
    low_rank_steps = [step for step, names in factors.items() if names]
    if not low_rank_steps:
        return []
    last = max(low_rank_steps)
    ranks: dict[str, set[int]] = {}
    for name in factors[last]:
        component = parse(name).component.removesuffix(".lora_A")
        rank = len(run.tensor(last, "weights", name))
        ranks.setdefault(component, set()).add(rank)
    components = []
    for component, component_ranks in ranks.items():
        components.append(f"{component} ({' and '.join(map(str, sorted(component_ranks)))})")
    where = f"low-rank at {len(low_rank_steps)} steps (rank at step {last})"
    return [f"{where}: {', '.join(components)}"]


def known_metrics() -> list[str]:
    """Describe each metric in a line: name, arity, kinds, unit, range, source and caution."""
    from pico_analyze.metrics.registry import METRICS

    width = max(map(len, METRICS))
    return [_line_of_metric(name.ljust(width), metric) for name, metric in METRICS.items()]


def _line_of_metric(name: str, metric: Metric) -> str:
    operands = "one matrix" if metric.arity == 1 else "a pair"
    kinds = "|".join(metric.kinds)
    line = f"{name}  {operands} of {kinds}; {metric.unit}, {metric.range}; {source_of(metric)}"
    return f"{line}; {metric.caution}" if metric.caution else line


def source_of(metric: Metric) -> str:
    """Return the paper or book that the docstring of a metric's function names."""
    return " ".join((metric.fn.__doc__ or "").partition("Source:")[2].split()).rstrip(".")
