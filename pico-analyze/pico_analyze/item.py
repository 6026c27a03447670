"""A work item: one unit of one kind at all steps, read, decomposed once, measured and made rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from pico_contract.errors import DamagedError, UserError

from pico_analyze import linalg
from pico_analyze.components import Key, Unit
from pico_analyze.metrics import ENTRY, Metric
from pico_analyze.metrics.single import Outcome
from pico_analyze.sources import Source

_ENTRY_UNITS = {"weights": "1", "gradients": "nats", "activations": "1"}
_BATCH_BYTES = 256 * 2**20
Row = dict[str, Any]
Loaded = tuple[int, Key, linalg.Matrix]


@dataclass(frozen=True)
class Work:
    """One unit of one kind and split, measured at `steps`, against `reference` where a metric needs one."""

    source: Source
    unit: Unit
    kind: str
    split: str | None
    steps: tuple[int, ...]
    reference: int


def measure_item(work: Work, metrics: Mapping[str, Metric]) -> tuple[list[Row], list[str]]:
    """Rows of one work item, and a sentence for each file that could not be read."""
    chosen = {name: metric for name, metric in metrics.items() if work.kind in metric.kinds}
    loader = _Loader(work)
    reference = loader.samples() if any(metric.arity == 2 for metric in chosen.values()) else {}
    rows: list[Row] = []
    applied: dict[str, Metric] = {}
    for batch in loader.batches():
        applied = {name: metric for name, metric in chosen.items() if _applies(metric, batch[0][2])}
        rows += _measure_batch(work, batch, applied, reference)
    for step in loader.missing:
        for key in work.unit.keys:
            rows += [_row(work, step, key, name, metric, Outcome(None, "missing")) for name, metric in applied.items()]
    return rows, loader.damages


@dataclass
class _Loader:
    """Reads the matrices of a work item, noting the steps that lack them and the files that are not readable."""

    work: Work
    missing: list[int] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)

    def batches(self) -> Iterator[list[Loaded]]:
        """The matrices of all steps, a memory budget's worth at a time."""
        batch: list[Loaded] = []
        size = 0
        for step in self.work.steps:
            matrices = self._load(step)
            if not matrices:
                self.missing.append(step)
            batch += [(step, key, matrix) for key, matrix in zip(self.work.unit.keys, matrices, strict=False)]
            size += sum(_bytes(matrix) for matrix in matrices)
            if size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def samples(self) -> dict[Key, linalg.Sample]:
        """The reference of each key; empty where its step lacks it."""
        loaded = zip(self.work.unit.keys, self._load(self.work.reference), strict=False)
        return {key: linalg.Sample.of(matrix) for key, matrix in loaded if len(matrix.shape) == 2}

    def _load(self, step: int) -> list[linalg.Matrix]:
        work = self.work
        try:
            return work.unit.load(work.source, step, work.kind, work.split)
        except DamagedError as error:
            self.damages.append(f"step {step} is left out in part: {error}")
        except UserError:
            pass  # the request was checked before: this step does not hold it
        return []


def _bytes(matrix: linalg.Matrix) -> int:
    return 8 * (matrix.left.numel() + matrix.right.numel() if isinstance(matrix, linalg.Product) else matrix.numel())


def _applies(metric: Metric, matrix: linalg.Matrix) -> bool:
    if metric.needs == "entries":
        return isinstance(matrix, torch.Tensor)
    return len(matrix.shape) == 2


def _measure_batch(
    work: Work, batch: list[Loaded], metrics: Mapping[str, Metric], reference: Mapping[Key, linalg.Sample]
) -> list[Row]:
    finite = [linalg.is_finite(matrix) for _, _, matrix in batch]
    spectral = any(metric.needs == "spectrum" for metric in metrics.values())
    good = [matrix for (_, _, matrix), ok in zip(batch, finite, strict=True) if ok]
    spectra = iter(linalg.spectra(good) if spectral else [None] * len(good))
    rows: list[Row] = []
    for (step, key, matrix), ok in zip(batch, finite, strict=True):
        spectrum = next(spectra) if ok else None
        inputs = _Inputs(matrix, spectrum, reference.get(key))
        for name, metric in metrics.items():
            outcome = inputs.apply(metric) if ok else Outcome(None, "non_finite")
            rows.append(_row(work, step, key, name, metric, outcome, matrix, spectrum))
    return rows


@dataclass(frozen=True)
class _Inputs:
    """What metrics of one matrix are given, under the names of `Metric.needs`, each made once."""

    matrix: linalg.Matrix
    spectrum: linalg.Spectrum | None
    reference: linalg.Sample | None

    @cached_property
    def entries(self) -> torch.Tensor:
        assert isinstance(self.matrix, torch.Tensor)
        return linalg.entries(self.matrix)

    @cached_property
    def sample(self) -> linalg.Sample:
        return linalg.Sample.of(self.matrix)

    def apply(self, metric: Metric) -> Outcome:
        given = getattr(self, metric.needs)
        if metric.arity == 1:
            return _outcome(metric.fn(given))
        if self.reference is None or self.reference.rows != given.rows:
            return Outcome(None, "missing")
        return _outcome(metric.fn(given, self.reference))


def _outcome(result: Any) -> Outcome:
    """A metric's own outcome, or a user's number, with a value that is finite or null."""
    value, status = result if isinstance(result, Outcome) else (float(result), "ok")
    return Outcome(value, status) if value is None or math.isfinite(value) else Outcome(None, "non_finite")


def _row(
    work: Work,
    step: int,
    key: Key,
    name: str,
    metric: Metric,
    outcome: Outcome,
    matrix: linalg.Matrix | None = None,
    spectrum: linalg.Spectrum | None = None,
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
        "variant": "{}",
        "value": outcome.value,
        "status": outcome.status,
        "unit": _ENTRY_UNITS[work.kind] if metric.unit == ENTRY else metric.unit or None,
    }
    if metric.arity == 2:
        row |= {"reference_run": work.source.name, "reference_step": work.reference, "reference_module": key.module}
    if matrix is not None:
        n, d = (*matrix.shape, 1)[:2]
        row |= {"n": n, "d": d, "dtype": str(matrix.dtype).removeprefix("torch.")}
    if spectrum is not None and metric.needs == "spectrum":
        row["tol"] = spectrum.tol
    return row
