"""The matrices of a work item, read step by step, a memory budget's worth at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from pico_contract.errors import DamagedError, UserError
from pico_contract.kinds import MICROBATCH_GRADIENTS

from pico_analyze import linalg
from pico_analyze.components.circuits import UPDATES
from pico_analyze.components.low_rank import base_dtypes
from pico_analyze.engine.inputs import MetricInputs
from pico_analyze.engine.work import Reference, WorkItem
from pico_analyze.sources.base import CountsTokens, KnowsPositions, NotObservedError

_BATCH_BYTES = 2 * 2**20
"""Matrices that are decomposed together: enough of small ones to share a call, few enough that
memory stays flat."""
_KEPT_BYTES = 256 * 2**20
"""References, and what is made of them, that a work item keeps."""


@dataclass
class Loader:
    """Reads the matrices of a work item, noting the files that are not readable."""

    work: WorkItem
    spectral: bool
    damages: dict[int, str] = field(default_factory=dict)
    gaps: dict[int, str] = field(default_factory=dict)
    kept: dict[int, list[MetricInputs]] = field(default_factory=dict)
    _held: dict[int, list[linalg.Matrix]] = field(default_factory=dict)

    def batches(self) -> Iterator[list[tuple[int, list[MetricInputs]]]]:
        """(step, a matrix for each key) of all steps that hold the unit, a memory budget's worth at
        a time."""
        batch: list[tuple[int, list[MetricInputs]]] = []
        size = 0
        for step in self.work.steps:
            inputs = list(
                self.load(step)
            )  # the caller empties this list: nothing else here may hold what is in it
            if inputs:
                batch.append((step, inputs))
            size += sum(one.bytes for one in inputs)
            if size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def load(self, step: int) -> list[MetricInputs]:
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
        merged = self._merged_in(start, step)
        return [self._update(old, new, merged) for old, new in pairs]

    def _update(
        self, old: linalg.Matrix, new: linalg.Matrix, merged: Sequence[torch.dtype]
    ) -> MetricInputs:
        """The difference, each of whose ends was rounded when it was merged and stored."""
        dtype = linalg.coarser(new.dtype, old.dtype, *merged)
        error = self._storage_error(old, merged) + self._storage_error(new, merged)
        return MetricInputs(linalg.difference(new, old), dtype, error, start=old)

    def _storage_error(self, matrix: linalg.Matrix, merged: Sequence[torch.dtype]) -> float:
        """0 where no metric asks for it, or where the matrix has no spectrum."""
        if self.spectral and len(matrix.shape) == 2 and linalg.is_finite(matrix):
            return linalg.storage_error(matrix, *merged)
        return 0.0

    def _merged_in(self, *steps: int) -> list[torch.dtype]:
        """The dtypes that the unit's effective weights were merged in: they are no more exact than
        their base."""
        work = self.work
        modules = work.unit.effective_weights(work.kind)
        with self._noting(steps[-1]):
            return [dtype for at in steps for dtype in base_dtypes(work.source, modules, at)]
        return []

    def _over_window(self, start: int, step: int) -> list[MetricInputs]:
        with self._noting(step):
            found = self.work.unit.change(self.work.source, start, step)
            return [MetricInputs(found.matrix, found.matrix.dtype, start=found.start)]
        return []

    def _loaded(self, step: int) -> list[MetricInputs]:
        matrices = self._read(step)
        merged = self._merged_in(step) if matrices else []
        if merged:
            return [
                MetricInputs(m, linalg.coarser(m.dtype, *merged), self._storage_error(m, merged))
                for m in matrices
            ]
        with self._noting(step):
            n_tokens, positions = self._n_tokens(step), self._positions(step)
            _check_rows(matrices, positions)
            return [
                MetricInputs(matrix, matrix.dtype, n_tokens=n_tokens, positions=positions)
                for matrix in matrices
            ]
        return []

    def _positions(self, step: int) -> int:
        """Rows of activations of each probe row at a step."""
        source = self.work.source
        return (
            source.positions(step)
            if self.work.kind == "activations" and isinstance(source, KnowsPositions)
            else 1
        )

    def _n_tokens(self, step: int) -> Sequence[int]:
        """Of each micro-batch, where the work is a stack of their gradients and the step holds
        it."""
        work = self.work
        if work.kind != MICROBATCH_GRADIENTS or not isinstance(work.source, CountsTokens):
            return ()
        return work.source.n_tokens(step, work.split)

    def _read(self, step: int) -> list[linalg.Matrix]:
        """The unit at a step. The start of a later window is kept until the next one, so that it is
        read once."""
        work = self.work
        if step in self._held:
            return self._held[step]
        found: list[linalg.Matrix] = []
        with self._noting(step):
            found = work.unit.load(
                work.source, step, "weights" if work.kind == UPDATES else work.kind, work.split
            )
        if work.kind == UPDATES and step in work.base.values():
            self._held = {step: found}
        return found

    @contextmanager
    def _noting(self, step: int) -> Iterator[None]:
        """Go on where a file is not readable, noting it, and where the step does not hold what is
        read."""
        try:
            yield
        except DamagedError as error:
            noted = self.gaps if isinstance(error, NotObservedError) else self.damages
            noted[step] = f"step {step} is left out in part: {error}"
        except UserError:
            pass  # the request was checked before


def _check_rows(matrices: Sequence[linalg.Matrix], positions: int) -> None:
    for matrix in matrices:
        if matrix.shape[0] % positions:
            raise DamagedError(
                f"the row map has {positions} positions a row, which {matrix.shape[0]} rows cannot have"
            )


@dataclass
class ReferenceCache:
    """The other members of pairs. Each is kept as long as a later step needs it, `_KEPT_BYTES` of
    them at most.

    What finds no room is put off (`rest`), to be measured as a work item of its own, which reads
    each matrix again.
    """

    loader: Loader
    sampled: bool
    rest: dict[int, tuple[Reference | None, ...]] = field(default_factory=dict)
    _from: Loader = field(init=False)
    _uses: Counter[int] = field(init=False)
    _full: bool = False

    def __post_init__(self) -> None:
        work = self.loader.work
        self._from = (
            self.loader
            if work.other is None
            else Loader(replace(work, source=work.other), spectral=False)
        )
        self._uses = Counter(
            found.step for step in work.steps for found in work.references.get(step, ()) if found
        )

    @property
    def damages(self) -> dict[int, str]:
        """A sentence for each step of references that is not readable."""
        return self._from.damages

    def keep(self, batch: list[tuple[int, list[MetricInputs]]]) -> None:
        """Keep those of a batch that a step is compared with."""
        for step, inputs in batch if self._from is self.loader else ():
            if self._uses[step] and step not in self._from.kept and self._has_room(inputs):
                self._from.kept[step] = list(inputs)

    def at(self, step: int) -> dict[Reference | None, list[MetricInputs]]:
        """What a step is compared with, for each key; [] where it cannot be had. Those put off are
        left out."""
        found: dict[Reference | None, list[MetricInputs]] = {}
        for reference in self.loader.work.references.get(step, ()):
            inputs = self._of(reference) if reference else []
            if inputs is None:
                self.rest[step] = (*self.rest.get(step, ()), reference)
            else:
                found[reference] = inputs
        return found

    def _of(self, reference: Reference) -> list[MetricInputs] | None:
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

    def _has_room(self, inputs: list[MetricInputs]) -> bool:
        """Of one there is always room, so that something is measured each time."""
        every = [one for kept in (*self._from.kept.values(), inputs) for one in kept]
        size = sum(max(one.bytes, one.sample_bytes if self.sampled else 0) for one in every)
        self._full = bool(self._from.kept) and size > _KEPT_BYTES
        return not self._full
