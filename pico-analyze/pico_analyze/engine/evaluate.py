"""A work item measured: its matrices decomposed once, metrics applied to them, and the rows of the
table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from pico_contract.errors import UserError, in_one_line

from pico_analyze import linalg
from pico_analyze.components.circuits import UPDATES
from pico_analyze.components.select import ComponentKey
from pico_analyze.engine.damage import DAMAGED, Damage
from pico_analyze.engine.inputs import MetricInputs, decompose
from pico_analyze.engine.loader import Loader, ReferenceCache
from pico_analyze.engine.work import Cell, Reference, WorkItem
from pico_analyze.metrics.null import Null, permutation_null, seed_of
from pico_analyze.metrics.registry import ENTRY, Metric
from pico_analyze.metrics.single import Outcome

_ENTRY_UNITS = {
    "weights": "1",
    "gradients": "nats per unit of weight",
    "activations": "1",
    UPDATES: "1",
}
_ANY_SHAPE = ("matrix", "update", "micro_batches")
"""What `Metric.needs` of vectors and stacks of matrices as well."""
Row = dict[str, Any]


class Measurement(NamedTuple):
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


Numbers = dict[str, list[Measurement] | None]
"""Metric -> a number for each key of the unit that has one, None where it does not apply to what
the unit is."""


@dataclass
class Result:
    """What was measured of a work item, and sentences on what was not.

    `damages` are of steps that are not readable, `lost` of such references, `gaps` of what was not
    observed.
    """

    at: dict[Cell, Numbers] = field(default_factory=dict)
    damages: dict[int, str] = field(default_factory=dict)
    gaps: dict[int, str] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)


def applicable_metrics(work: WorkItem, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Those of `metrics` that are measured of a work item: of a unit that spans layers pairs alone,
    since each layer is a unit as well.
    """
    found = metrics_for_kind(work.kind, metrics)
    return _of_arity(2, found) if work.unit.spans_layers else found


def metrics_for_kind(kind: str, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Those of `metrics` that are defined for a kind. An update is a matrix as weights are, and no
    member of a pair."""
    as_weights = kind == UPDATES
    return {
        name: metric
        for name, metric in metrics.items()
        if kind in metric.kinds or (as_weights and "weights" in metric.kinds and metric.arity == 1)
    }


def _of_arity(arity: int, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    return {name: metric for name, metric in metrics.items() if metric.arity == arity}


def cells(
    work: WorkItem, metrics: Mapping[str, Metric]
) -> Iterator[tuple[Cell, dict[str, Metric]]]:
    """Where something is measured, step by step, and which of `metrics`: of the step alone, then of
    its pairs."""
    chosen = applicable_metrics(work, metrics)
    alone, pairs = (_of_arity(arity, chosen) for arity in (1, 2))
    for step in work.steps:
        yield Cell(step), alone
        for reference in work.references.get(step, ()):
            yield Cell(step, reference), pairs


def measure_item(work: WorkItem, metrics: Mapping[str, Metric]) -> Result:
    """Measure those of `metrics` that are defined for the kind; a step that lacks the unit is left
    out."""
    chosen = applicable_metrics(work, metrics)
    pairs = _of_arity(2, chosen)
    spectral = any(metric.needs == "spectrum" for metric in chosen.values())
    work = work if pairs else replace(work, references={})
    loader = Loader(work, spectral)
    references = ReferenceCache(loader, any(metric.needs == "sample" for metric in pairs.values()))
    result = Result(damages=loader.damages, gaps=loader.gaps, lost=references.damages)
    for batch in loader.batches():
        if spectral:
            decompose([one for _, inputs in batch for one in inputs])
        references.keep(batch)
        while batch:
            step, inputs = batch.pop(0)
            result.at |= _numbers(work, step, chosen, inputs, references.at(step))
    if references.rest:
        rest = measure_item(
            replace(work, steps=tuple(references.rest), references=references.rest), pairs
        )
        result.at |= rest.at
        result.damages |= rest.damages
        result.lost |= rest.lost
    return result


def table_rows(
    work: WorkItem, metrics: Mapping[str, Metric], at: Mapping[Cell, Numbers], damage: Damage
) -> Iterator[Row]:
    """Rows of the table, step by step, for each metric that applies.

    The status of what is not in `at` is `damaged` if a file of `damage` was needed for it, else
    `missing`.
    """
    chosen = applicable_metrics(work, metrics)
    known = {name: [numbers[name] for numbers in at.values() if name in numbers] for name in chosen}
    hidden = damage.hides(work)
    applied = {
        name: metric
        for name, metric in chosen.items()
        if any(numbers is not None for numbers in known[name]) or (not known[name] and hidden)
    }
    for step in work.steps:
        pairs = work.references.get(step, ())
        for index, key in enumerate(work.unit.keys):
            for name, metric in applied.items():
                for reference in pairs if metric.arity == 2 else (None,):
                    position = index - (reference.shift if reference else 0)
                    numbers = at.get(Cell(step, reference), {}).get(name)
                    measured = (
                        numbers[position]
                        if numbers and position >= 0
                        else Measurement(None, "missing")
                    )
                    if measured.status == "missing" and damage.concerns(work, step, reference):
                        measured = measured._replace(status=DAMAGED)
                    if position >= 0:
                        yield _row(work, step, key, name, metric, measured, reference)


def _numbers(
    work: WorkItem,
    step: int,
    metrics: Mapping[str, Metric],
    inputs: list[MetricInputs],
    against: Mapping[Reference | None, list[MetricInputs]],
) -> dict[Cell, Numbers]:
    """Every metric of each key. `inputs` are used up: what was made of one is gone before the next
    is begun."""
    applied = {
        name: metric
        for name, metric in metrics.items()
        if _applies(metric, inputs[0].matrix, work.dense_circuits)
    }
    found: dict[Cell, Numbers] = {}
    for name, metric in metrics.items():
        for reference in against if metric.arity == 2 else (None,):
            found.setdefault(Cell(step, reference), {})[name] = [] if name in applied else None
    for index, key in enumerate(work.unit.keys[: len(inputs)]):
        given = inputs.pop(0)
        for name, metric in applied.items():
            for reference in against if metric.arity == 2 else (None,):
                position = index - (reference.shift if reference else 0)
                numbers = found[Cell(step, reference)][name]
                if position >= 0 and numbers is not None:
                    other = against[reference][position] if against.get(reference) else None
                    numbers.append(
                        _measure(
                            metric, given, other, work.draws, _seed(work, step, key, reference)
                        )
                    )
    return found


def _seed(work: WorkItem, step: int, key: ComponentKey, reference: Reference | None) -> int:
    """Of the null: all metrics of a pair have the same orders."""
    return seed_of(
        *seeded_by(work, step, reference), work.kind, work.split, key.component, key.layer, key.head
    )


def seeded_by(work: WorkItem, step: int, reference: Reference | None) -> tuple[str | int, ...]:
    """Between which runs and steps: what the draws of a null depend on beside which component it
    is."""
    return work.source.name, step, (work.other or work.source).name, *(reference or ())


def has_null(metric: Metric) -> bool:
    """Whether there are rows to permute: of similarities of samples."""
    return metric.arity == 2 and metric.needs == "sample"


def _measure(
    metric: Metric, given: MetricInputs, reference: MetricInputs | None, draws: int, seed: int
) -> Measurement:
    outcome = _outcome_of(metric, given, reference)
    tol = given.spectrum.tol if metric.needs == "spectrum" and given.finite else None
    null = Null(None, None, None)
    if draws and has_null(metric) and reference is not None and outcome.value is not None:
        fn = partial(metric.fn, **metric.parameters)
        null = permutation_null(fn, given.sample, reference.sample, draws, seed)
    return Measurement(outcome.value, outcome.status, *given.stored, tol, *null)


def _applies(metric: Metric, matrix: linalg.Matrix, dense_circuits: bool) -> bool:
    if metric.needs == "entries":
        return dense_circuits or isinstance(matrix, torch.Tensor)
    return metric.needs in _ANY_SHAPE or len(matrix.shape) == 2


def _outcome_of(metric: Metric, given: MetricInputs, reference: MetricInputs | None) -> Outcome:
    if not given.finite:
        return Outcome(None, "non_finite")
    if metric.arity == 1:
        return _outcome(metric, _value(metric, getattr(given, metric.needs)))
    if reference is None or not _comparable(metric, given, reference):
        return Outcome(None, "missing")
    if not reference.finite:
        return Outcome(None, "non_finite")
    matrices = getattr(given, metric.needs), getattr(reference, metric.needs)
    return _outcome(metric, metric.fn(*matrices, **metric.parameters))


def _comparable(metric: Metric, given: MetricInputs, reference: MetricInputs) -> bool:
    """Whether two matrices belong together: entries need the same shape, samples the same rows of
    the same probe."""
    if metric.needs == "matrix":
        return given.matrix.shape == reference.matrix.shape
    return (given.matrix.shape[0], given.positions) == (
        reference.matrix.shape[0],
        reference.positions,
    )


def _value(metric: Metric, argument: Any) -> Any:
    """What a metric makes of `argument`; a failure of a user's own function (it has no range) names
    it."""
    try:
        return metric.fn(argument, **metric.parameters)
    except Exception as error:
        if metric.range or isinstance(error, UserError):
            raise
        name = getattr(metric.fn, "__qualname__", repr(metric.fn))
        raise UserError(f'the metric "{name}" failed: {in_one_line(error)}') from error


def _outcome(metric: Metric, result: Any) -> Outcome:
    """A metric's own outcome, or a user's number, with a value that is finite or null."""
    try:
        value, status = result if isinstance(result, Outcome) else (float(result), "ok")
    except (TypeError, ValueError, RuntimeError):
        name = getattr(metric.fn, "__name__", "")
        raise UserError(
            f'the metric "{name}" should give a number but gave a {type(result).__name__}'
        ) from None
    return (
        Outcome(value, status)
        if value is None or math.isfinite(value)
        else Outcome(None, "non_finite")
    )


def _row(
    work: WorkItem,
    step: int,
    key: ComponentKey,
    name: str,
    metric: Metric,
    measured: Measurement,
    reference: Reference | None,
) -> Row:
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
        "variant": metric.variant,
        "unit": _ENTRY_UNITS[work.kind] if metric.unit == ENTRY else metric.unit or None,
    }
    base = work.base.get(step)
    if base is not None:
        row |= {
            "reference_run": work.source.name,
            "reference_step": base,
            "reference_module": key.module,
        }
    elif reference is not None:
        module = work.unit.keys[work.unit.keys.index(key) - reference.shift].module
        other = work.other or work.source
        row |= {
            "reference_run": other.name,
            "reference_step": reference.step,
            "reference_module": module,
        }
    return row | measured._asdict()
