"""Measure one work item: decompose its matrices once, apply metrics, and make rows of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from pico_analyze.engine.loader import Loader, ReferenceLoader, load_batch
from pico_analyze.engine.reference_cache import StepInputs
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
"""Values of `Metric.needs` that vectors and stacks of matrices provide as well."""
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


_MISSING = Measurement(None, "missing")

Numbers = dict[str, list[Measurement] | None]
"""Metric -> a number for each pair of `Work.pairs`, in its order; None if it does not apply."""


@dataclass
class Result:
    """The numbers of a work item, and sentences on those that are missing.

    `damages` maps steps that are not readable to sentences, `lost` references that are not, and
    `gaps` steps at which something was never observed.
    """

    at: dict[Cell, Numbers] = field(default_factory=dict)
    damages: dict[int, str] = field(default_factory=dict)
    gaps: dict[int, str] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)


def applicable_metrics(work: WorkItem, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Choose those of `metrics` that are measured of a work item.

    A unit that spans layers has pairs alone, since each layer is a unit of its own as well.
    """
    defined = metrics_for_kind(work.kind, metrics)
    return _of_arity(2, defined) if work.unit.spans_layers else defined


def metrics_for_kind(kind: str, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Choose those of `metrics` that are defined for a kind.

    An update is a matrix like weights are, but never a member of a pair.
    """

    def is_defined(metric: Metric) -> bool:
        if kind in metric.kinds:
            return True
        return kind == UPDATES and "weights" in metric.kinds and metric.arity == 1

    return {name: metric for name, metric in metrics.items() if is_defined(metric)}


def _of_arity(arity: int, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    return {name: metric for name, metric in metrics.items() if metric.arity == arity}


def cells(
    work: WorkItem, metrics: Mapping[str, Metric]
) -> Iterator[tuple[Cell, dict[str, Metric]]]:
    """Yield each place with the metrics that are measured there: a step alone, then its pairs."""
    chosen = applicable_metrics(work, metrics)
    alone = _of_arity(1, chosen)
    pairs = _of_arity(2, chosen)
    for step in work.steps:
        yield Cell(step), alone
        for reference in work.references.get(step, ()):
            yield Cell(step, reference), pairs


def measure_item(work: WorkItem, metrics: Mapping[str, Metric]) -> Result:
    """Measure those of `metrics` that are defined for the kind, at each step with the unit."""
    chosen = applicable_metrics(work, metrics)
    pairs = _of_arity(2, chosen)
    # Without metrics of pairs no reference is read.
    work = work if pairs else replace(work, references={})
    needs = {metric.needs for metric in chosen.values()}
    loader = Loader(work, "spectrum" in needs)
    samples = any(metric.needs == "sample" for metric in pairs.values())
    references = ReferenceLoader(loader, counts_samples=samples)
    result = Result(damages=loader.damages, gaps=loader.gaps, lost=references.damages)
    steps = iter(work.steps)
    while _measure_batch(steps, chosen, loader, references, result):
        pass
    if references.put_off:
        rest = replace(work, steps=tuple(references.put_off), references=references.put_off)
        # The first reference always fits, so each round measures some pairs and this ends.
        measured = measure_item(rest, pairs)
        result.at |= measured.at
        result.damages |= measured.damages
        result.lost |= measured.lost
    return result


def _measure_batch(
    steps: Iterator[int],
    metrics: Mapping[str, Metric],
    loader: Loader,
    references: ReferenceLoader,
    result: Result,
) -> bool:
    """Measure the next batch of steps into `result`, and return whether there was one.

    The batch is local to this function, so that it is freed before the next one is read.
    """
    batch = load_batch(steps, loader, references)
    if loader.spectral:
        decompose([inputs for by_key in batch.values() for inputs in by_key.values()])
    references.keep(batch)
    for step, by_key in batch.items():
        result.at |= _measure_step(loader.work, step, metrics, by_key, references.load(step))
    return bool(batch)


def _measure_step(
    work: WorkItem,
    step: int,
    metrics: Mapping[str, Metric],
    inputs: StepInputs,
    references: Mapping[Reference | None, StepInputs],
) -> dict[Cell, Numbers]:
    """Apply every metric to each key, alone or with its partner in each of `references`.

    `inputs` are used up.
    """
    numbers: dict[Cell, Numbers] = {}
    # All matrices of a unit have the same form, so the first one tells which metrics apply.
    first = next(iter(inputs))
    for name, metric in metrics.items():
        does_apply = _applies(metric, inputs[first].matrix, work.dense_circuits)
        for reference in _references_of(metric, references):
            at_place = numbers.setdefault(Cell(step, reference), {})
            at_place[name] = [] if does_apply else None
    pairs = {reference: work.pairs(reference) for reference in (None, *references)}
    for key in tuple(inputs):
        # Taken out, so that all that was derived from this matrix is freed before the next one.
        given = inputs.pop(key)
        for name, metric in metrics.items():
            for reference in _references_of(metric, references):
                measured_so_far = numbers[Cell(step, reference)][name]
                partner_key = pairs[reference].get(key)
                if measured_so_far is None or partner_key is None:
                    continue
                partner = references.get(reference, {}).get(partner_key)
                # A hash, computed only if there is a null to be seeded.
                seed = partial(_seed, work, step, key, reference)
                measured = _measure(metric, given, partner, work.draws, seed)
                measured_so_far.append(measured)
    return numbers


def _references_of(
    metric: Metric, references: Iterable[Reference | None]
) -> Iterable[Reference | None]:
    """The references that a metric is computed with: None alone for a metric of one matrix."""
    return references if metric.arity == 2 else (None,)


def table_rows(
    work: WorkItem, metrics: Mapping[str, Metric], at: Mapping[Cell, Numbers], damage: Damage
) -> Iterator[Row]:
    """Yield the rows of the table, step by step, for each metric that applies.

    A number that is not in `at` has status `damaged` if it needed a file of `damage`, else
    `missing`.
    """
    applied = _applied(work, metrics, at, damage.hides(work))
    for step in work.steps:
        references = work.references.get(step, ())
        pairs = {reference: work.pairs(reference) for reference in (None, *references)}
        numbers = {
            reference: _by_key(partners, at.get(Cell(step, reference), {}))
            for reference, partners in pairs.items()
        }
        for key in work.unit.keys:
            for name, metric in applied.items():
                for reference in _references_of(metric, references):
                    partner = pairs[reference].get(key)
                    if partner is None:
                        continue  # the first layers have no layer so far before them
                    measured = numbers[reference].get((name, key), _MISSING)
                    if measured.status == "missing" and damage.concerns(work, step, reference):
                        measured = measured._replace(status=DAMAGED)
                    row = _about(work, step, key, name, metric)
                    row |= _compared_with(work, step, reference, partner)
                    yield row | measured._asdict()


def _by_key(
    keys: Iterable[ComponentKey], numbers: Numbers
) -> dict[tuple[str, ComponentKey], Measurement]:
    """Address the numbers of one place by their metric and key instead of by their order."""
    addressed = {}
    for name, in_order in numbers.items():
        for key, measured in zip(keys, in_order or (), strict=False):
            addressed[name, key] = measured
    return addressed


def _applied(
    work: WorkItem, metrics: Mapping[str, Metric], at: Mapping[Cell, Numbers], is_hidden: bool
) -> dict[str, Metric]:
    """Choose the metrics that have rows: those that apply to the unit at some step.

    Nothing tells which apply if nothing was measured; then all have rows if `is_hidden`, so that
    the damage shows.
    """
    applied = {}
    for name, metric in applicable_metrics(work, metrics).items():
        known = [numbers[name] for numbers in at.values() if name in numbers]
        has_numbers = any(numbers is not None for numbers in known)
        shows_damage = is_hidden and not known
        if has_numbers or shows_damage:
            applied[name] = metric
    return applied


def _seed(work: WorkItem, step: int, key: ComponentKey, reference: Reference | None) -> int:
    """Seed the null of a pair: all its metrics get the same orders."""
    pair = seeded_by(work, step, reference)
    matrix = (work.kind, work.split, key.component, key.layer, key.head)
    return seed_of(*pair, *matrix)


def seeded_by(work: WorkItem, step: int, reference: Reference | None) -> tuple[str | int, ...]:
    """Name the runs and steps of a pair, on which the draws of its null depend.

    The draws depend on the component as well, which the cache knows from the name of its file.
    """
    return work.source.name, step, (work.other or work.source).name, *(reference or ())


def has_null(metric: Metric) -> bool:
    """Whether a metric has a permutation null: similarities of samples, whose rows are permuted."""
    return metric.arity == 2 and metric.needs == "sample"


def _measure(
    metric: Metric,
    given: MetricInputs,
    reference: MetricInputs | None,
    draws: int,
    seed: Callable[[], int],
) -> Measurement:
    outcome = _outcome_of(metric, given, reference)
    tol = None
    if metric.needs == "spectrum" and given.finite:
        tol = given.spectrum.tol
    null = Null(None, None, None)
    wants_null = draws > 0 and has_null(metric)
    if wants_null and reference is not None and outcome.value is not None:
        fn = partial(metric.fn, **metric.parameters)
        null = permutation_null(fn, given.sample, reference.sample, draws, seed())
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
    # Shapes differ between runs of different models, or if the probe changed.
    if reference is None or not _comparable(metric, given, reference):
        return Outcome(None, "missing")
    if not reference.finite:
        return Outcome(None, "non_finite")
    x = getattr(given, metric.needs)
    y = getattr(reference, metric.needs)
    return _outcome(metric, metric.fn(x, y, **metric.parameters))


def _comparable(metric: Metric, given: MetricInputs, reference: MetricInputs) -> bool:
    """Whether two matrices match: entries need equal shapes, samples the same rows of a probe."""
    shape, reference_shape = given.matrix.shape, reference.matrix.shape
    if metric.needs == "matrix":
        return shape == reference_shape
    return shape[0] == reference_shape[0] and given.positions == reference.positions


def _value(metric: Metric, argument: Any) -> Any:
    """Call a metric; the error of a user's own function names the function."""
    try:
        return metric.fn(argument, **metric.parameters)
    except Exception as error:
        # Only our own metrics have a range: their errors are bugs and keep their traceback.
        if metric.range or isinstance(error, UserError):
            raise
        name = getattr(metric.fn, "__qualname__", repr(metric.fn))
        raise UserError(f'the metric "{name}" failed: {in_one_line(error)}') from error


def _outcome(metric: Metric, result: Any) -> Outcome:
    """Turn the result of a metric, an outcome or a number, into a finite or null outcome."""
    try:
        value, status = result if isinstance(result, Outcome) else (float(result), "ok")
    except (TypeError, ValueError, RuntimeError):
        name = getattr(metric.fn, "__name__", "")
        raise UserError(
            f'the metric "{name}" should give a number but gave a {type(result).__name__}'
        ) from None
    if value is not None and not math.isfinite(value):
        return Outcome(None, "non_finite")
    return Outcome(value, status)


def _about(work: WorkItem, step: int, key: ComponentKey, name: str, metric: Metric) -> Row:
    """The columns that say what a number is about."""
    return {
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


def _compared_with(
    work: WorkItem, step: int, reference: Reference | None, partner: ComponentKey
) -> Row:
    """The columns that say what a number is compared with, or where its window begins."""
    base = work.base.get(step)
    if base is not None:
        run, reference_step = work.source, base
    elif reference is not None:
        run, reference_step = work.other or work.source, reference.step
    else:
        return {}
    return {
        "reference_run": run.name,
        "reference_step": reference_step,
        "reference_module": partner.module,
    }
