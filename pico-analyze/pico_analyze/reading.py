"""A work item, and its matrices read step by step, a memory budget's worth at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from pico_contract.errors import DamagedError, UserError

from pico_analyze import linalg
from pico_analyze.components import UPDATES, Unit
from pico_analyze.sources import MICROBATCH_GRADIENTS, CountsTerms, Source

_BATCH_BYTES = 8 * 2**20
"""Matrices that are decomposed together: enough of small ones to share a call, few enough that memory stays flat."""


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
    def spectrum(self) -> linalg.Spectrum:
        """Of this matrix alone, where `decompose` did not give it with those of others."""
        return self.judged(linalg.spectra([self.matrix])[0])

    @cached_property
    def entries(self) -> torch.Tensor:
        """In float64."""
        assert isinstance(self.matrix, torch.Tensor)
        return linalg.entries(self.matrix)

    @cached_property
    def sample(self) -> linalg.Sample:
        """The rows as observations."""
        return linalg.Sample.of(self.matrix)

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
        """Of the matrix (or its factors) in float64."""
        m = self.matrix
        return 8 * (m.left.numel() + m.right.numel() if isinstance(m, linalg.Product) else m.numel())


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
    _fixed: dict[int, list[Inputs]] = field(default_factory=dict)
    _held: dict[int, list[linalg.Matrix]] = field(default_factory=dict)
    _largest: dict[int, list[float]] = field(default_factory=dict)

    def batches(self) -> Iterator[list[tuple[int, list[Inputs]]]]:
        """(step, a matrix for each key) of all steps that hold the unit, a memory budget's worth at a time."""
        batch: list[tuple[int, list[Inputs]]] = []
        size = 0
        for step in self.work.steps:
            loaded = self.load(step)
            if loaded:
                batch.append((step, list(loaded)))
            size += sum(one.bytes for one in loaded)
            if size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def load(self, step: int) -> list[Inputs]:
        """What is measured at a step; [] where it, or the start of its window, is not there."""
        if self.work.kind != UPDATES:
            return self._fixed.get(step) or self._loaded(step)
        start = self.work.base.get(step)
        if start is None:
            return []
        pairs = list(zip(self._read(start), self._read(step), strict=False))
        if not pairs or any(before.shape != after.shape for before, after in pairs):
            return []
        scales = self._scales(start, [old for old, _ in pairs]), self._scales(step, [new for _, new in pairs])
        return [
            Inputs(linalg.difference(new, old), linalg.coarser(new.dtype, old.dtype), max(scale), start=old)
            for (old, new), *scale in zip(pairs, *scales, strict=True)
        ]

    def _loaded(self, step: int) -> list[Inputs]:
        """A reference that all steps share is made once, as it is one of them."""
        terms = self._terms(step)
        found = [Inputs(matrix, matrix.dtype, terms=terms) for matrix in self._read(step)]
        if {*self.work.base.values()} == {step}:
            self._fixed[step] = found
        return found

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
class References:
    """The other members of pairs. One step's are kept: a fixed reference, or the step before."""

    loader: Loader
    _kept: dict[int, list[Inputs]] = field(default_factory=dict)

    def of(self, step: int) -> list[Inputs]:
        """The reference of a step, for each key; [] where there is none."""
        base = self.loader.work.base.get(step)
        if base is None:
            return []
        if base not in self._kept:
            self._kept = {base: self.loader.load(base)}
        return self._kept[base]

    def keep(self, step: int, inputs: list[Inputs]) -> None:
        """Keep what was made of a step if a later one is compared with it."""
        if step not in self._kept and step in self.loader.work.base.values():
            self._kept = {step: inputs}
