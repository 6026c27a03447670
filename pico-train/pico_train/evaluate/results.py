"""Evaluations that a run has, read back from its files."""

from __future__ import annotations

from collections.abc import Mapping

from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.layout import RunLayout
from pico_contract.schema import EvaluationManifest, Measurement


def evaluations_of(layout: RunLayout, step: int) -> list[EvaluationManifest]:
    """The intact results of theta_step, by the names of their files."""
    found = []
    for path in sorted(layout.evaluations_at(step).glob("*.json")):
        try:
            found.append(codec.read_manifest(path, EvaluationManifest))
        except DamagedError:
            continue  # evaluating again replaces it; what is told here is told without it
    return found


def newest_evaluations(layout: RunLayout) -> list[EvaluationManifest]:
    """The results of the newest step that has any."""
    steps = reversed(codec.listed_steps(layout.evaluations))
    return next((found for step in steps if (found := evaluations_of(layout, step))), [])


def task_scalars(task: str, metrics: Mapping[str, Measurement]) -> dict[str, float]:
    """`task/metric` -> value, without the metrics of parts (`accuracy/paradigm/X`)."""
    return {
        f"{task}/{name}": measured.value for name, measured in metrics.items() if "/" not in name
    }


def scalars(layout: RunLayout, step: int) -> dict[str, float]:
    """`task_scalars` of all results of theta_step."""
    return {
        key: v
        for result in evaluations_of(layout, step)
        for key, v in task_scalars(result.task, result.metrics).items()
    }
