"""The parts of an analysis that a run can give, and its steps as `measure` takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from pico_contract.kinds import KINDS, SPLITS

from pico_analyze.components.circuits import UPDATES
from pico_analyze.config.analysis import AnalysisConfig, Part, StepRange
from pico_analyze.sources.base import Source

Asked = AnalysisConfig | Part


def parts_of(config: AnalysisConfig) -> Sequence[Asked]:
    """Return the parts of an analysis, or the analysis itself as its only part."""
    return config.parts or [config]


def measurable_parts(
    parts: Sequence[Asked], run: Source, say: Callable[[str], None]
) -> Sequence[Asked]:
    """Select the parts that the run has data for; `say` gets a line for each part left out.

    An analysis of several parts is so measured as far as possible. If the run has data for none,
    all parts are returned, since `measure` explains best why it finds nothing.
    """
    stored = {
        (kind, split)
        for step in run.steps
        for kind in KINDS
        for split in run.splits(step, kind)
    }
    measurable, lines = [], []
    for part in parts:
        # Updates are differences of weights, and data without a split serve any split.
        kinds = ["weights" if kind == UPDATES else kind for kind in part.kinds or KINDS]
        splits: Sequence[str] = part.splits or SPLITS
        if stored.isdisjoint(product(kinds, (*splits, None))):
            data = f"{' or '.join(kinds)} (of split {' or '.join(splits)})"
            metrics = ", ".join(part.metrics or ["all metrics"])
            lines.append(f"note: the run has no {data}: left out, of {metrics}")
        else:
            measurable.append(part)
    if not measurable:
        return parts
    for line in lines:
        say(line)
    return measurable


def steps_of(
    config: AnalysisConfig, run: Source, say: Callable[[str], None]
) -> list[int] | dict[str, Any] | None:
    """Return the steps as `measure` takes them; `say` gets a line for absent ones of `among`."""
    if not isinstance(config.steps, StepRange):
        return config.steps
    absent = sorted({*(config.steps.among or ())} - {*run.steps, *run.damaged})
    if absent:
        say(f"note: steps: the run has no step {', '.join(map(str, absent))}")
    return config.steps.model_dump(exclude_none=True)
