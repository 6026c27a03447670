"""What of an analysis a run can give: its parts, and its steps as `measure` takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pico_contract.kinds import KINDS, SPLITS

from pico_analyze.components.circuits import UPDATES
from pico_analyze.config.analysis import AnalysisConfig, Part, StepRange
from pico_analyze.sources.base import Source

Asked = AnalysisConfig | Part


def parts_of(config: AnalysisConfig) -> Sequence[Asked]:
    """What is measured one after the other: the parts, or all at once."""
    return config.parts or [config]


def measurable_parts(
    parts: Sequence[Asked], run: Source, say: Callable[[str], None]
) -> Sequence[Asked]:
    """Those of whose kinds and splits the run has something; `say` gets a line for each other. All
    where it has none.

    An analysis of several parts is then measured as far as it can be; what nothing is there of is
    `measure`'s to say.
    """
    there = {
        (kind, split) for step in run.steps for kind in KINDS for split in run.splits(step, kind)
    }
    found, lines = [], []
    for part in parts:
        kinds = ["weights" if kind == UPDATES else kind for kind in part.kinds or KINDS]
        splits: Sequence[str] = part.splits or SPLITS
        if there.isdisjoint((kind, split) for kind in kinds for split in (*splits, None)):
            of = f"{' or '.join(kinds)} (of split {' or '.join(splits)})"
            lines.append(
                f"note: the run has no {of}: left out, of {', '.join(part.metrics or ['all metrics'])}"
            )
        else:
            found.append(part)
    if not found:
        return parts
    for line in lines:
        say(line)
    return found


def steps_of(
    config: AnalysisConfig, run: Source, say: Callable[[str], None]
) -> list[int] | dict[str, Any] | None:
    """The steps as `measure` takes them; `say` gets a line for those of `among` that the run does
    not have."""
    if not isinstance(config.steps, StepRange):
        return config.steps
    absent = sorted({*(config.steps.among or ())} - {*run.steps, *run.damaged})
    if absent:
        say(f"note: steps: the run has no step {', '.join(map(str, absent))}")
    return config.steps.model_dump(exclude_none=True)
