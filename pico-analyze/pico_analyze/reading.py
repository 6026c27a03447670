"""A work item, and its matrices read step by step, a memory budget's worth at a time."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from pico_contract.errors import DamagedError, UserError

from pico_analyze import linalg
from pico_analyze.components import UPDATES, Unit
from pico_analyze.low_rank import base_dtypes
from pico_analyze.sample import Sample
from pico_analyze.sources import MICROBATCH_GRADIENTS, CountsTerms, NotObservedError, Source

_BATCH_BYTES = 2 * 2**20
"""Matrices that are decomposed together: enough of small ones to share a call, few enough that memory stays flat."""
_KEPT_BYTES = 256 * 2**20
"""References, and what is made of them, that a work item keeps."""


class Reference(NamedTuple):
    """What a unit is compared with: the unit at `step`, each key with the one `shift` places before it."""

    step: int
    shift: int = 0


class Place(NamedTuple):
    """Where a number belongs: a step, and what it is compared with there."""

    step: int
    reference: Reference | None = None


@dataclass(frozen=True)
class Work:
    """One unit of one kind and split, to be measured at `steps`.

    `base` is step -> the start of an update's window. `references` is step -> what similarities are taken to there,
    None where that is lacking; they are steps of `other`, or of the source itself. `draws` are those of the null, or 0.
    `formed` says whether a circuit's matrix, (D, D) a head, is formed where a metric needs its entries.
    """

    source: Source
    unit: Unit
    kind: str
    split: str | None
    steps: tuple[int, ...]
    base: Mapping[int, int] = field(default_factory=dict)
    references: Mapping[int, tuple[Reference | None, ...]] = field(default_factory=dict)
    other: Source | None = None
    draws: int = 0
    formed: bool = False


@dataclass(eq=False)
class Inputs:
    """What metrics of one matrix are given, under the names of `Metric.needs`, each made once.

    `dtype` is that in which the matrix, or what it is a difference of, is stored; `scale` is `linalg.Spectrum.scale`.
    `start` is what an update began from; `terms` are those of the loss in each of the micro-batches of a stack.
    """

    matrix: linalg.Matrix
    dtype: torch.dtype
    scale: float | None = None
    start: linalg.Matrix | None = None
    terms: Sequence[int] = ()

    @cached_property
    def finite(self) -> bool:
        """Whether no entry is NaN or infinite; without it nothing is measured."""
        return linalg.is_finite(self.matrix)

    @cached_property
    def stored(self) -> tuple[int, int, str]:
        """Rows, columns and dtype as the table has them, shared by all numbers of this matrix."""
        rows, *rest = self.matrix.shape
        return rows, math.prod(rest), sys.intern(str(self.dtype).removeprefix("torch."))

    @cached_property
    def spectrum(self) -> linalg.Spectrum:
        """Of this matrix alone, where `decompose` did not give it with those of others."""
        return self.judged(linalg.spectra([self.matrix])[0])

    @cached_property
    def entries(self) -> torch.Tensor:
        """In float64."""
        return self.matrix.dense() if isinstance(self.matrix, linalg.Product) else linalg.entries(self.matrix)

    @cached_property
    def sample(self) -> Sample:
        """The rows as observations."""
        return Sample.of(self.matrix)

    @cached_property
    def update(self) -> linalg.Update:
        """The change with what it changed."""
        assert self.start is not None
        return linalg.Update(self.matrix, self.start)

    @cached_property
    def micro_batches(self) -> linalg.MicroBatches:
        """The stack with the terms of each of its gradients."""
        return linalg.MicroBatches(self.entries, torch.tensor(self.terms, dtype=linalg.REAL))

    def judged(self, spectrum: linalg.Spectrum) -> linalg.Spectrum:
        """The matrix's spectrum, its tolerance that of how the matrix was stored."""
        return linalg.Spectrum(spectrum.values, spectrum.shape, self.dtype, self.scale)

    @property
    def bytes(self) -> int:
        """Of the matrix (or its factors) in float64, and of what it began from."""
        parts = [self.matrix] if self.start is None else [self.matrix, self.start]
        return 8 * sum(m.left.numel() + m.right.numel() if isinstance(m, linalg.Product) else m.numel() for m in parts)

    @property
    def sample_bytes(self) -> int:
        """At most this much is made of the matrix as a sample: rows, both sides of the basis, five squares of rows."""
        rows, width = self.matrix.shape
        return 8 * (3 * rows * width + 5 * rows**2)


def decompose(batch: list[Inputs]) -> None:
    """Give each finite matrix its spectrum; equal shapes are decomposed together."""
    finite = [one for one in batch if len(one.matrix.shape) == 2 and one.finite]
    for one, spectrum in zip(finite, linalg.spectra([one.matrix for one in finite]), strict=True):
        one.spectrum = one.judged(spectrum)


@dataclass
class Loader:
    """Reads the matrices of a work item, noting the files that are not readable."""

    work: Work
    spectral: bool
    damages: dict[int, str] = field(default_factory=dict)
    gaps: dict[int, str] = field(default_factory=dict)
    kept: dict[int, list[Inputs]] = field(default_factory=dict)
    _held: dict[int, list[linalg.Matrix]] = field(default_factory=dict)
    _largest: dict[int, list[float]] = field(default_factory=dict)

    def batches(self) -> Iterator[list[tuple[int, list[Inputs]]]]:
        """(step, a matrix for each key) of all steps that hold the unit, a memory budget's worth at a time."""
        batch: list[tuple[int, list[Inputs]]] = []
        size = 0
        for step in self.work.steps:
            inputs = list(self.load(step))  # the caller empties this list: nothing else here may hold what is in it
            if inputs:
                batch.append((step, inputs))
            size += sum(one.bytes for one in inputs)
            if size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def load(self, step: int) -> list[Inputs]:
        """What is measured at a step; [] where it, or the start of its window, is not there."""
        if self.work.kind != UPDATES:
            return self.kept.get(step) or self._loaded(step)
        start = self.work.base.get(step)
        if start is None:
            return []
        if self.work.unit.is_of_window:
            return self._over_window(start, step)
        pairs = list(zip(self._read(start), self._read(step), strict=False))
        if not pairs or any(before.shape != after.shape for before, after in pairs):
            return []
        scales = self._scales(start, [old for old, _ in pairs]), self._scales(step, [new for _, new in pairs])
        return [
            Inputs(linalg.difference(new, old), linalg.coarser(new.dtype, old.dtype, *bases), max(scale), start=old)
            for (old, new), bases, *scale in zip(pairs, self._bases(start, step), *scales, strict=True)
        ]

    def _bases(self, *steps: int) -> list[list[torch.dtype]]:
        """The dtypes of what each matrix was merged into: effective weights are no more exact than their base."""
        source, unit = self.work.source, self.work.unit
        if unit.circuit is None:
            with self._noting(steps[-1]):
                return [[dtype for at in steps for dtype in base_dtypes(source, key.module, at)] for key in unit.keys]
        return [[] for _ in unit.keys]

    def _over_window(self, start: int, step: int) -> list[Inputs]:
        with self._noting(step):
            found = self.work.unit.change(self.work.source, start, step)
            return [Inputs(found.matrix, found.dtype, found.scale, start=found.start)]
        return []

    def _loaded(self, step: int) -> list[Inputs]:
        terms = self._terms(step)
        return [Inputs(matrix, matrix.dtype, terms=terms) for matrix in self._read(step)]

    def _terms(self, step: int) -> Sequence[int]:
        """Of each micro-batch, where the work is a stack of their gradients and the step holds it."""
        work = self.work
        if work.kind != MICROBATCH_GRADIENTS or not isinstance(work.source, CountsTerms):
            return ()
        return work.source.terms(step, work.split)

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
        with self._noting(step):
            found = work.unit.load(work.source, step, "weights" if work.kind == UPDATES else work.kind, work.split)
        if work.kind == UPDATES and step in work.base.values():
            self._held = {step: found}
        return found

    @contextmanager
    def _noting(self, step: int) -> Iterator[None]:
        """Go on where a file is not readable, noting it, and where the step does not hold what is read."""
        try:
            yield
        except DamagedError as error:
            noted = self.gaps if isinstance(error, NotObservedError) else self.damages
            noted[step] = f"step {step} is left out in part: {error}"
        except UserError:
            pass  # the request was checked before


@dataclass
class References:
    """The other members of pairs. Each is kept as long as a later step needs it, `_KEPT_BYTES` of them at most.

    What finds no room is put off (`rest`), to be measured as a work item of its own, which reads each matrix again.
    """

    loader: Loader
    sampled: bool
    rest: dict[int, tuple[Reference | None, ...]] = field(default_factory=dict)
    _from: Loader = field(init=False)
    _uses: Counter[int] = field(init=False)
    _full: bool = False

    def __post_init__(self) -> None:
        work = self.loader.work
        self._from = self.loader if work.other is None else Loader(replace(work, source=work.other), spectral=False)
        self._uses = Counter(found.step for step in work.steps for found in work.references.get(step, ()) if found)

    @property
    def damages(self) -> dict[int, str]:
        """A sentence for each step of references that is not readable."""
        return self._from.damages

    def keep(self, batch: list[tuple[int, list[Inputs]]]) -> None:
        """Keep those of a batch that a step is compared with."""
        for step, inputs in batch if self._from is self.loader else ():
            if self._uses[step] and step not in self._from.kept and self._has_room(inputs):
                self._from.kept[step] = list(inputs)

    def at(self, step: int) -> dict[Reference | None, list[Inputs]]:
        """What a step is compared with, for each key; [] where it cannot be had. Those put off are left out."""
        found: dict[Reference | None, list[Inputs]] = {}
        for reference in self.loader.work.references.get(step, ()):
            inputs = self._of(reference) if reference else []
            if inputs is None:
                self.rest[step] = (*self.rest.get(step, ()), reference)
            else:
                found[reference] = inputs
        return found

    def _of(self, reference: Reference) -> list[Inputs] | None:
        self._uses[reference.step] -= 1
        last = not self._uses[reference.step]
        if self._full and not last and reference.step not in self._from.kept:
            return None
        inputs = self._from.load(reference.step)
        if last:
            self._full &= self._from.kept.pop(reference.step, None) is None
        elif inputs and reference.step not in self._from.kept:
            if not self._has_room(inputs):
                return None
            self._from.kept[reference.step] = inputs
        return inputs

    def _has_room(self, inputs: list[Inputs]) -> bool:
        """Of one there is always room, so that something is measured each time."""
        every = [one for kept in (*self._from.kept.values(), inputs) for one in kept]
        size = sum(max(one.bytes, one.sample_bytes if self.sampled else 0) for one in every)
        self._full = bool(self._from.kept) and size > _KEPT_BYTES
        return not self._full
