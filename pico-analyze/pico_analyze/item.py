"""A work item: one unit of one kind at all steps, read, decomposed once, measured and made rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from pico_contract.errors import DamagedError, UserError

from pico_analyze import linalg
from pico_analyze.components import UPDATES, Key, Unit
from pico_analyze.metrics import ENTRY, Metric
from pico_analyze.metrics.single import Outcome
from pico_analyze.sources import Source

_ENTRY_UNITS = {"weights": "1", "gradients": "nats", "activations": "1", UPDATES: "1"}
_BATCH_BYTES = 32 * 2**20
"""Matrices that are decomposed together: enough of small ones to share a call, few enough that memory stays flat."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """One unit of one kind and split, to be measured at `steps`.

    `base` is step -> the step that it is compared with: the reference of similarities, the start of an update's window.
    """

    source: Source
    unit: Unit
    kind: str
    split: str | None
    steps: tuple[int, ...]
    base: Mapping[int, int]


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
    if kind == UPDATES:
        return {name: metric for name, metric in metrics.items() if "weights" in metric.kinds and metric.arity == 1}
    return {name: metric for name, metric in metrics.items() if kind in metric.kinds}


def measure_item(work: Work, metrics: Mapping[str, Metric]) -> Result:
    """Measure those of `metrics` that are defined for the kind; a step that lacks the unit is left out."""
    chosen = chosen_for(work.kind, metrics)
    spectral = any(metric.needs == "spectrum" for metric in chosen.values())
    loader = _Loader(work, spectral)
    references = _References(loader) if any(metric.arity == 2 for metric in chosen.values()) else None
    result = Result(damages=loader.damages)
    for batch in loader.batches():
        if spectral:
            _decompose([one for _, inputs in batch for one in inputs])
        for step, inputs in batch:
            against = references.of(step) if references else []
            result.at[step] = {name: _measure(metric, inputs, against) for name, metric in chosen.items()}
            if references:
                references.keep(step, inputs)
    return result


def rows(work: Work, metrics: Mapping[str, Metric], at: Mapping[int, Numbers]) -> Iterator[Row]:
    """Rows of the table, step by step; `missing` for each metric that applies where a step is not in `at`."""
    applied = [
        name for name in chosen_for(work.kind, metrics) if any(numbers.get(name) is not None for numbers in at.values())
    ]
    for step in work.steps:
        for index, key in enumerate(work.unit.keys):
            for name in applied:
                numbers = at[step][name] if step in at else None
                measured = numbers[index] if numbers else Measured(None, "missing")
                yield _row(work, step, key, name, metrics[name], measured)


@dataclass(eq=False)
class _Inputs:
    """What metrics of one matrix are given, under the names of `Metric.needs`, each made once.

    `dtype` is that in which the matrix, or what it is a difference of, is stored; `scale` is `linalg.Spectrum.scale`.
    """

    matrix: linalg.Matrix
    dtype: torch.dtype
    scale: float | None = None

    @cached_property
    def finite(self) -> bool:
        return linalg.is_finite(self.matrix)

    @cached_property
    def spectrum(self) -> linalg.Spectrum:
        return self.judged(linalg.spectra([self.matrix])[0])

    @cached_property
    def entries(self) -> torch.Tensor:
        assert isinstance(self.matrix, torch.Tensor)
        return linalg.entries(self.matrix)

    @cached_property
    def sample(self) -> linalg.Sample:
        return linalg.Sample.of(self.matrix)

    def judged(self, spectrum: linalg.Spectrum) -> linalg.Spectrum:
        """The matrix's spectrum, its tolerance that of how the matrix was stored."""
        return linalg.Spectrum(spectrum.values, spectrum.shape, self.dtype, self.scale)

    @property
    def bytes(self) -> int:
        """Of the matrix (or its factors) in float64."""
        m = self.matrix
        return 8 * (m.left.numel() + m.right.numel() if isinstance(m, linalg.Product) else m.numel())


def _decompose(batch: list[_Inputs]) -> None:
    """Give each finite matrix its spectrum; equal shapes are decomposed together."""
    finite = [one for one in batch if len(one.matrix.shape) == 2 and one.finite]
    for one, spectrum in zip(finite, linalg.spectra([one.matrix for one in finite]), strict=True):
        one.spectrum = one.judged(spectrum)


@dataclass
class _Loader:
    """Reads the matrices of a work item, noting the files that are not readable."""

    work: Work
    spectral: bool
    damages: dict[int, str] = field(default_factory=dict)
    _held: dict[int, list[linalg.Matrix]] = field(default_factory=dict)
    _largest: dict[int, list[float]] = field(default_factory=dict)

    def batches(self) -> Iterator[list[tuple[int, list[_Inputs]]]]:
        """(step, a matrix for each key) of all steps that hold the unit, a memory budget's worth at a time."""
        batch: list[tuple[int, list[_Inputs]]] = []
        size = 0
        for step in self.work.steps:
            loaded = self.load(step)
            if loaded:
                batch.append((step, loaded))
            size += sum(one.bytes for one in loaded)
            if size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def load(self, step: int) -> list[_Inputs]:
        """What is measured at a step; [] where it, or the start of its window, is not there."""
        if self.work.kind != UPDATES:
            return [_Inputs(matrix, matrix.dtype) for matrix in self._read(step)]
        start = self.work.base.get(step)
        if start is None:
            return []
        pairs = list(zip(self._read(start), self._read(step), strict=False))
        if not pairs or any(before.shape != after.shape for before, after in pairs):
            return []
        scales = self._scales(start, [old for old, _ in pairs]), self._scales(step, [new for _, new in pairs])
        return [
            _Inputs(linalg.difference(new, old), new.dtype, max(scale))
            for (old, new), *scale in zip(pairs, *scales, strict=True)
        ]

    def _scales(self, step: int, matrices: list[linalg.Matrix]) -> list[float]:
        """s_max of each; 0 where no metric asks for it, or where the difference has no spectrum either."""
        if step not in self._largest:
            known = [self.spectral and len(m.shape) == 2 and linalg.is_finite(m) for m in matrices]
            self._largest[step] = [linalg.largest(m) if ok else 0.0 for m, ok in zip(matrices, known, strict=True)]
        return self._largest[step]

    def _read(self, step: int) -> list[linalg.Matrix]:
        """The unit at a step. The start of a later window is kept until the next one, so that it is read once."""
        work = self.work
        if step in self._held:
            return self._held[step]
        found: list[linalg.Matrix] = []
        try:
            found = work.unit.load(work.source, step, "weights" if work.kind == UPDATES else work.kind, work.split)
        except DamagedError as error:
            self.damages[step] = f"step {step} is left out in part: {error}"
        except UserError:
            pass  # the request was checked before: this step does not hold it
        if work.kind == UPDATES and step in work.base.values():
            self._held = {step: found}
        return found


@dataclass
class _References:
    """The other members of pairs. One step's are kept: a fixed reference, or the step before."""

    loader: _Loader
    _kept: dict[int, list[_Inputs]] = field(default_factory=dict)

    def of(self, step: int) -> list[_Inputs]:
        """The reference of a step, for each key; [] where there is none."""
        base = self.loader.work.base.get(step)
        if base is None:
            return []
        if base not in self._kept:
            self._kept = {base: self.loader.load(base)}
        return self._kept[base]

    def keep(self, step: int, inputs: list[_Inputs]) -> None:
        """Keep what was made of a step if a later one is compared with it."""
        if step not in self._kept and step in self.loader.work.base.values():
            self._kept = {step: inputs}


def _measure(metric: Metric, inputs: Iterable[_Inputs], against: list[_Inputs]) -> list[Measured] | None:
    found = []
    for index, given in enumerate(inputs):
        if not _applies(metric, given.matrix):
            return None
        reference = against[index] if index < len(against) else None
        outcome = _outcome_of(metric, given, reference)
        n, d = (*given.matrix.shape, 1)[:2]
        tol = given.spectrum.tol if metric.needs == "spectrum" and given.finite else None
        dtype = str(given.dtype).removeprefix("torch.")
        found.append(Measured(outcome.value, outcome.status, n, d, dtype, tol))
    return found


def _applies(metric: Metric, matrix: linalg.Matrix) -> bool:
    if metric.needs == "entries":
        return isinstance(matrix, torch.Tensor)
    return metric.needs == "matrix" or len(matrix.shape) == 2


def _outcome_of(metric: Metric, given: _Inputs, reference: _Inputs | None) -> Outcome:
    if not given.finite:
        return Outcome(None, "non_finite")
    if metric.arity == 1:
        return _outcome(metric.fn(getattr(given, metric.needs), **metric.parameters))
    same = None if metric.needs == "matrix" else 1  # entries need the same shape, samples the same rows
    if reference is None or reference.matrix.shape[:same] != given.matrix.shape[:same]:
        return Outcome(None, "missing")
    if not reference.finite:
        return Outcome(None, "non_finite")
    return _outcome(metric.fn(getattr(given, metric.needs), getattr(reference, metric.needs), **metric.parameters))


def _outcome(result: Any) -> Outcome:
    """A metric's own outcome, or a user's number, with a value that is finite or null."""
    value, status = result if isinstance(result, Outcome) else (float(result), "ok")
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
