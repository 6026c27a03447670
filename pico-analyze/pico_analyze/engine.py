"""measure(): what was asked -> work items -> rows -> table. A work item is one unit of one kind at all steps.

Going module by module rather than step by step keeps one reference in memory at a time and lets the decompositions of
all steps of a module run as one batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pico_contract.errors import DamagedError, UserError, did_you_mean

from pico_analyze import linalg
from pico_analyze.components import Key, Unit, check, plan
from pico_analyze.metrics import ENTRY, Metric, resolve
from pico_analyze.metrics.single import Outcome
from pico_analyze.sources import KINDS, SPLITS, Source
from pico_analyze.table import from_rows

if TYPE_CHECKING:
    import pandas as pd

COMPONENTS = ("*_proj", "ov_circuit")
_ENTRY_UNITS = {"weights": "1", "gradients": "nats", "activations": "1"}
_BATCH_BYTES = 256 * 2**20
Row = dict[str, Any]
Steps = Sequence[int] | Mapping[str, int] | None


class DamagedWarning(UserWarning):
    """Part of a run could not be read; the rest was measured."""


@dataclass(frozen=True)
class Work:
    """One unit of one kind and split, measured at `steps`, against `reference` where a metric needs one."""

    source: Source
    unit: Unit
    kind: str
    split: str | None
    steps: tuple[int, ...]
    reference: int


def measure(
    run: Source,
    metrics: Sequence[str | Callable[..., Any]] | None = None,
    components: Sequence[str] | None = None,
    steps: Steps = None,
    kinds: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    reference: str | int = "last",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Compute metrics of a run's components over steps, as the tidy table of `pico_analyze.table`.

    Args:
        metrics: names of `METRICS`, functions of a float64 tensor, or `module:attribute`; all of METRICS by default.
        components: globs over module names, and circuits (`ov_circuit`); "*_proj" and the circuits by default.
        steps: a list, or {start, end, step} (inclusive, never beyond `end`); every step by default.
        kinds: of weights, gradients, activations; all by default. splits: of train, val; all by default.
        reference: the step that similarities are taken to: "first" or "last" of those that hold the kind, or a number.
        progress: called with (work items done, all).

    Combinations that mean nothing are left out: spectral metrics of vectors, entries of a circuit, similarities of
    anything but activations. What a step lacks has status `missing`.

    Raises:
        UserError: an unknown metric, component, kind, split or step (with the nearest), or nothing to measure.

    Warns:
        DamagedWarning: once for each part of the run that is not readable; its rows have status `missing`.
    """
    chosen = resolve(metrics)
    kinds = _known("kind", kinds, KINDS)
    splits = _known("split", splits, SPLITS)
    at = choose_steps(steps, sorted({*run.steps, *run.damaged}))
    for step in at:
        for sentence in run.damaged.get(step, ()):
            warnings.warn(f"step {step} is left out in part: {sentence}", DamagedWarning, stacklevel=2)
    items = _work(run, components or COMPONENTS, at, kinds, splits, reference)
    rows: list[Row] = []
    unreadable: dict[str, None] = {}
    with linalg.pool() as pool:
        for done, (found, damages) in enumerate(pool.map(partial(_measure_unit, metrics=chosen), items), start=1):
            rows += found
            unreadable |= dict.fromkeys(damages)
            if progress:
                progress(done, len(items))
    for sentence in unreadable:
        warnings.warn(sentence, DamagedWarning, stacklevel=2)
    if not rows:
        raise UserError(f'nothing to measure in run "{run.name}": no such metric of such kinds and components')
    return from_rows(rows)


def choose_steps(steps: Steps, known: Sequence[int]) -> tuple[int, ...]:
    """The steps that are asked for, ascending; every one must be among `known`, except those that a range skips over.

    {start: 0, end: 100, step: 30} is 0, 30, 60, 90; missing keys are the first step, the last, and every known one.
    """
    if steps is None:
        return tuple(known)
    if isinstance(steps, Mapping):
        unknown = [key for key in steps if key not in ("start", "end", "step")]
        if unknown:
            raise UserError(f'steps: unknown key "{unknown[0]}"{did_you_mean(unknown[0], ("start", "end", "step"))}')
        return _range(steps, known)
    for step in steps:
        if step not in known:
            near = min(known, key=lambda k: abs(k - step), default=None)
            raise UserError(f"the run has no step {step}; the nearest is {near}")
    return tuple(sorted(set(steps)))


def _range(steps: Mapping[str, int], known: Sequence[int]) -> tuple[int, ...]:
    start, end = steps.get("start", 0), steps.get("end", max(known, default=0))
    stride = steps.get("step")
    if stride is not None and stride < 1:
        raise UserError(f"steps: step should be at least 1 but is {stride}")
    wanted = [k for k in known if start <= k <= end and (stride is None or (k - start) % stride == 0)]
    if not wanted:
        raise UserError(f"no observed step lies in {dict(steps)}; the run has {_listed(known)}")
    return tuple(wanted)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (f", ... {steps[-1]}" if len(steps) > 8 else "")


def _known(what: str, given: Sequence[str] | None, all_: tuple[str, ...]) -> tuple[str, ...]:
    for name in given or ():
        if name not in all_:
            raise UserError(f'there is no {what} "{name}"{did_you_mean(name, all_)}')
    return tuple(given or all_)


def _work(
    run: Source,
    components: Sequence[str],
    steps: tuple[int, ...],
    kinds: Sequence[str],
    splits: Sequence[str],
    reference: str | int,
) -> list[Work]:
    held = _holdings(run, kinds, splits)
    check(
        components,
        list(dict.fromkeys(name for by_step in held.values() for names in by_step.values() for name in names)),
    )
    items = []
    for (kind, split), by_step in held.items():
        modules = dict.fromkeys(name for names in by_step.values() for name in names)
        for unit in plan(components, kind, modules, run.model):
            items.append(Work(run, unit, kind, split, steps, _reference(run, reference, list(by_step))))
    return items


def _holdings(
    run: Source, kinds: Sequence[str], splits: Sequence[str]
) -> dict[tuple[str, str | None], dict[int, list[str]]]:
    """(kind, split) -> step -> modules that it holds, over all steps of the run."""
    held: dict[tuple[str, str | None], dict[int, list[str]]] = {}
    for kind in kinds:
        for step in run.steps:
            for split in run.splits(step, kind):
                if split is not None and split not in splits:
                    continue
                try:
                    held.setdefault((kind, split), {})[step] = run.modules(step, kind, split)
                except DamagedError:
                    continue  # reported where the tensors are read
    return held


def _reference(run: Source, reference: str | int, steps: list[int]) -> int:
    if reference in ("first", "last"):
        return steps[0] if reference == "first" else steps[-1]
    if not isinstance(reference, int):
        raise UserError(f'reference should be "first", "last" or a step but is "{reference}"')
    if reference not in run.steps:
        near = min(run.steps, key=lambda k: abs(k - reference))
        raise UserError(f"the reference step {reference} is not in the run; the nearest is {near}")
    return reference


def _measure_unit(work: Work, metrics: Mapping[str, Metric]) -> tuple[list[Row], list[str]]:
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


Loaded = tuple[int, Key, linalg.Matrix]


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
        """The reference of each key; empty where its step lacks it or it is not finite."""
        loaded = zip(self.work.unit.keys, self._load(self.work.reference), strict=False)
        return {key: linalg.Sample.of(m) for key, m in loaded if len(m.shape) == 2 and linalg.is_finite(m)}

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


class _Inputs:
    """What metrics of one matrix are given, each made once."""

    def __init__(
        self, matrix: linalg.Matrix, spectrum: linalg.Spectrum | None, reference: linalg.Sample | None
    ) -> None:
        self.matrix, self.spectrum, self.reference = matrix, spectrum, reference
        self.made: dict[str, Any] = {"spectrum": spectrum}

    def apply(self, metric: Metric) -> Outcome:
        if metric.needs not in self.made:
            make: Callable[[Any], Any] = {"entries": linalg.entries, "sample": linalg.Sample.of}[metric.needs]
            self.made[metric.needs] = make(self.matrix)
        given = self.made[metric.needs]
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
        "unit": _ENTRY_UNITS[work.kind] if metric.unit == ENTRY else metric.unit,
    }
    if metric.arity == 2:
        row |= {"reference_run": work.source.name, "reference_step": work.reference, "reference_module": key.module}
    if matrix is not None:
        n, d = (*matrix.shape, 1)[:2]
        row |= {"n": n, "d": d, "dtype": str(matrix.dtype).removeprefix("torch.")}
    if spectrum is not None and metric.needs == "spectrum":
        row["tol"] = spectrum.tol
    return row
