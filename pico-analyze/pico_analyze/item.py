"""A work item measured: its matrices decomposed once, metrics applied to them, and the rows of the table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from pico_contract.errors import UserError

from pico_analyze import linalg
from pico_analyze.components import UPDATES, Key
from pico_analyze.metrics import ENTRY, Metric
from pico_analyze.metrics.single import Outcome
from pico_analyze.reading import Inputs, Loader, References, Work, decompose

_ENTRY_UNITS = {"weights": "1", "gradients": "nats", "activations": "1", UPDATES: "1"}
_ANY_SHAPE = ("matrix", "update", "micro_batches")
"""What `Metric.needs` of vectors and stacks of matrices as well."""
Row = dict[str, Any]


class Measured(NamedTuple):
    """One number and what it was computed from; the fields are columns of the table."""

    value: float | None
    status: str
    n: int | None = None
    d: int | None = None
    dtype: str | None = None
    tol: float | None = None
    null_mean: float | None = None
    null_sd: float | None = None
    p: float | None = None


Numbers = dict[str, list[Measured] | None]
"""Metric -> a number for each key of the unit, None where the metric does not apply to what the unit is."""


@dataclass
class Result:
    """What was measured of a work item, by step, and a sentence for each step that could not be read."""

    at: dict[int, Numbers] = field(default_factory=dict)
    damages: dict[int, str] = field(default_factory=dict)


def chosen_for(kind: str, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Those of `metrics` that are defined for a kind. An update is a matrix as weights are, and no member of a pair."""
    as_weights = kind == UPDATES
    return {
        name: metric
        for name, metric in metrics.items()
        if kind in metric.kinds or (as_weights and "weights" in metric.kinds and metric.arity == 1)
    }


def measure_item(work: Work, metrics: Mapping[str, Metric]) -> Result:
    """Measure those of `metrics` that are defined for the kind; a step that lacks the unit is left out."""
    chosen = chosen_for(work.kind, metrics)
    spectral = any(metric.needs == "spectrum" for metric in chosen.values())
    loader = Loader(work, spectral)
    references = References(loader) if any(metric.arity == 2 for metric in chosen.values()) else None
    result = Result(damages=loader.damages)
    for batch in loader.batches():
        if spectral:
            decompose([one for _, inputs in batch for one in inputs])
        while batch:
            step, inputs = batch.pop(0)
            against = references.of(step) if references else []
            if references:
                references.keep(step, list(inputs))
            result.at[step] = _numbers(chosen, inputs, against)
    return result


def rows(work: Work, metrics: Mapping[str, Metric], at: Mapping[int, Numbers]) -> Iterator[Row]:
    """Rows of the table, step by step; `missing` for each metric that applies where a step is not in `at`."""
    applied = [
        name for name in chosen_for(work.kind, metrics) if any(numbers.get(name) is not None for numbers in at.values())
    ]
    for step in work.steps:
        for index, key in enumerate(work.unit.keys):
            for name in applied:
                numbers = at.get(step, {}).get(name)
                measured = numbers[index] if numbers else Measured(None, "missing")
                yield _row(work, step, key, name, metrics[name], measured)


def _numbers(metrics: Mapping[str, Metric], inputs: list[Inputs], against: list[Inputs]) -> Numbers:
    """Every metric of each key. `inputs` are used up: what was made of one is gone before the next is begun."""
    applied = {name: metric for name, metric in metrics.items() if _applies(metric, inputs[0].matrix)}
    found: dict[str, list[Measured]] = {name: [] for name in applied}
    references = iter(against)
    while inputs:
        given, reference = inputs.pop(0), next(references, None)
        for name, metric in applied.items():
            found[name].append(_measure(metric, given, reference))
    return {name: found.get(name) for name in metrics}


def _measure(metric: Metric, given: Inputs, reference: Inputs | None) -> Measured:
    outcome = _outcome_of(metric, given, reference)
    n, *rest = given.matrix.shape
    d = math.prod(rest)
    tol = given.spectrum.tol if metric.needs == "spectrum" and given.finite else None
    return Measured(outcome.value, outcome.status, n, d, str(given.dtype).removeprefix("torch."), tol)


def _applies(metric: Metric, matrix: linalg.Matrix) -> bool:
    if metric.needs == "entries":
        return isinstance(matrix, torch.Tensor)
    return metric.needs in _ANY_SHAPE or len(matrix.shape) == 2


def _outcome_of(metric: Metric, given: Inputs, reference: Inputs | None) -> Outcome:
    if not given.finite:
        return Outcome(None, "non_finite")
    if metric.arity == 1:
        return _outcome(metric, metric.fn(getattr(given, metric.needs), **metric.parameters))
    same = None if metric.needs == "matrix" else 1  # entries need the same shape, samples the same rows
    if reference is None or reference.matrix.shape[:same] != given.matrix.shape[:same]:
        return Outcome(None, "missing")
    if not reference.finite:
        return Outcome(None, "non_finite")
    matrices = getattr(given, metric.needs), getattr(reference, metric.needs)
    return _outcome(metric, metric.fn(*matrices, **metric.parameters))


def _outcome(metric: Metric, result: Any) -> Outcome:
    """A metric's own outcome, or a user's number, with a value that is finite or null."""
    try:
        value, status = result if isinstance(result, Outcome) else (float(result), "ok")
    except (TypeError, ValueError, RuntimeError):
        name = getattr(metric.fn, "__name__", "")
        raise UserError(f'the metric "{name}" should give a number but gave a {type(result).__name__}') from None
    return Outcome(value, status) if value is None or math.isfinite(value) else Outcome(None, "non_finite")


def _row(work: Work, step: int, key: Key, name: str, metric: Metric, measured: Measured) -> Row:
    row: Row = {
        "run": work.source.name,
        "step": step,
        "tokens": work.source.tokens(step),
        "split": work.split,
        "kind": work.kind,
        "component": key.component,
        "layer": key.layer,
        "head": key.head,
        "module": key.module,
        "metric": name,
        "variant": json.dumps(dict(metric.parameters), sort_keys=True),
        "unit": _ENTRY_UNITS[work.kind] if metric.unit == ENTRY else metric.unit or None,
    }
    base = work.base.get(step)
    if base is not None and (metric.arity == 2 or work.kind == UPDATES):
        row |= {"reference_run": work.source.name, "reference_step": base, "reference_module": key.module}
    return row | measured._asdict()
