"""Results of a run's evaluations, read back from its files."""

from __future__ import annotations

from collections.abc import Mapping

from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.layout import RunLayout
from pico_contract.schema import EvaluationManifest, Measurement


def evaluations_of(layout: RunLayout, step: int) -> list[EvaluationManifest]:
    """Return the intact results of theta_step, sorted by file name."""
    results = []
    for path in sorted(layout.evaluations_at(step).glob("*.json")):
        try:
            results.append(codec.read_manifest(path, EvaluationManifest))
        except DamagedError:
            continue  # evaluating again replaces the file; until then it counts as absent
    return results


def newest_evaluations(layout: RunLayout) -> list[EvaluationManifest]:
    """Return the results of the newest step that has any."""
    for step in reversed(codec.listed_steps(layout.evaluations)):
        results = evaluations_of(layout, step)
        if results:
            return results
    return []


def task_scalars(task: str, metrics: Mapping[str, Measurement]) -> dict[str, float]:
    """Return `task/metric` -> value, without metrics of parts (`accuracy/paradigm/X`)."""
    return {
        f"{task}/{name}": measured.value
        for name, measured in metrics.items()
        if "/" not in name
    }


def scalars(layout: RunLayout, step: int) -> dict[str, float]:
    """Return `task_scalars` of all results of theta_step."""
    values: dict[str, float] = {}
    for result in evaluations_of(layout, step):
        values |= task_scalars(result.task, result.metrics)
    return values
