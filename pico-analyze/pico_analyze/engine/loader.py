"""Read the matrices of a work item step by step, a memory budget's worth at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from pico_contract.errors import DamagedError, UserError
from pico_contract.kinds import MICROBATCH_GRADIENTS

from pico_analyze import linalg
from pico_analyze.components.circuits import UPDATES
from pico_analyze.components.low_rank import base_dtypes
from pico_analyze.engine.inputs import MetricInputs
from pico_analyze.engine.reference_cache import ReferenceCache, StepInputs
from pico_analyze.engine.work import Reference, WorkItem
from pico_analyze.sources.base import CountsTokens, KnowsPositions, NotObservedError

_BATCH_BYTES = 2 * 2**20
"""Bytes of matrices that are decomposed together.

Enough small ones to share a call, and few enough that memory stays flat.
"""
_KEPT_BYTES = 256 * 2**20
"""Bytes of references, with everything derived from them, that a work item keeps."""


@dataclass
class Loader:
    """The reader of a work item's matrices, with notes on the steps that are not readable."""

    work: WorkItem
    spectral: bool
    damages: dict[int, str] = field(default_factory=dict)
    gaps: dict[int, str] = field(default_factory=dict)
    _window_starts: dict[int, list[linalg.Matrix]] = field(default_factory=dict)

    def load(self, step: int) -> StepInputs:
        """Read the unit at a step; {} if it is missing, or the start of its window is."""
        inputs = self._update_at(step) if self.work.kind == UPDATES else self._stored_at(step)
        return dict(zip(self.work.unit.keys, inputs, strict=False))

    def _update_at(self, step: int) -> list[MetricInputs]:
        start = self.work.base.get(step)
        if start is None:
            return []
        if self.work.unit.is_of_window:
            return self._over_window(start, step)
        # The start is read first: it is the end of the window before, which `_read` keeps.
        pairs = list(zip(self._read(start), self._read(step), strict=False))
        if not pairs or any(before.shape != after.shape for before, after in pairs):
            return []
        merged = self._merged_in(start, step)
        return [self._difference(old, new, merged) for old, new in pairs]

    def _over_window(self, start: int, step: int) -> list[MetricInputs]:
        with self._noting(step):
            change = self.work.unit.change(self.work.source, start, step)
            return [MetricInputs(change.matrix, change.matrix.dtype, start=change.start)]
        return []

    def _difference(
        self, old: linalg.Matrix, new: linalg.Matrix, merged: Sequence[torch.dtype]
    ) -> MetricInputs:
        """Subtract the two ends of an update, each of which was rounded when it was stored."""
        dtype = linalg.coarser(new.dtype, old.dtype, *merged)
        error = self._storage_error(old, merged) + self._storage_error(new, merged)
        return MetricInputs(linalg.difference(new, old), dtype, error, start=old)

    def _storage_error(self, matrix: linalg.Matrix, merged: Sequence[torch.dtype]) -> float:
        """Bound the error by storage; 0 if no metric asks for it or the matrix has no spectrum."""
        if self.spectral and len(matrix.shape) == 2 and linalg.is_finite(matrix):
            return linalg.storage_error(matrix, *merged)
        return 0.0

    def _merged_in(self, *steps: int) -> list[torch.dtype]:
        """List the dtypes in which low-rank updates were merged into the unit's weights.

        Effective weights are no more exact than the base that they were merged into.
        """
        work = self.work
        modules = work.unit.effective_weights(work.kind)
        with self._noting(steps[-1]):
            return [
                dtype for step in steps for dtype in base_dtypes(work.source, modules, step)
            ]
        return []

    def _stored_at(self, step: int) -> list[MetricInputs]:
        matrices = self._read(step)
        merged = self._merged_in(step) if matrices else []
        # Effective weights carry the rounding of their merge beside that of their own storage.
        if merged:
            return [
                MetricInputs(
                    m, linalg.coarser(m.dtype, *merged), self._storage_error(m, merged)
                )
                for m in matrices
            ]
        with self._noting(step):
            n_tokens, positions = self._n_tokens(step), self._positions(step)
            _check_rows(matrices, positions)
            return [
                MetricInputs(m, m.dtype, n_tokens=n_tokens, positions=positions)
                for m in matrices
            ]
        return []

    def _positions(self, step: int) -> int:
        """Count the rows of activations that belong to each probe row."""
        source = self.work.source
        if self.work.kind == "activations" and isinstance(source, KnowsPositions):
            return source.positions(step)
        return 1

    def _n_tokens(self, step: int) -> Sequence[int]:
        """Count the terms of the loss in each micro-batch of a stack of gradients."""
        work = self.work
        if work.kind == MICROBATCH_GRADIENTS and isinstance(work.source, CountsTokens):
            return work.source.n_tokens(step, work.split)
        return ()

    def _read(self, step: int) -> list[linalg.Matrix]:
        """Read the unit's matrices, keeping the start of a window until the next one is read."""
        work = self.work
        if step in self._window_starts:
            return self._window_starts[step]
        stored = "weights" if work.kind == UPDATES else work.kind
        matrices: list[linalg.Matrix] = []
        with self._noting(step):
            matrices = work.unit.load(work.source, step, stored, work.split)
        if work.kind == UPDATES and step in work.base.values():
            self._window_starts = {step: matrices}
        return matrices

    @contextmanager
    def _noting(self, step: int) -> Iterator[None]:
        """Note a file that is not readable, and go on."""
        try:
            yield
        except DamagedError as error:
            # A gap is no fault of a file: its numbers are missing, not damaged.
            noted = self.gaps if isinstance(error, NotObservedError) else self.damages
            noted[step] = f"step {step} is left out in part: {error}"
        except UserError:
            # The request was checked before, so this step merely lacks the unit.
            pass


def _check_rows(matrices: Sequence[linalg.Matrix], positions: int) -> None:
    for matrix in matrices:
        if matrix.shape[0] % positions:
            raise DamagedError(
                f"the row map has {positions} positions a row, which {matrix.shape[0]} rows cannot have"
            )


class ReferenceLoader:
    """The reader of a work item's references, which keeps each while a later step needs it.

    A reference for which the cache has no room is put off. Those in `put_off` are to be measured as
    a work item of their own, which reads each matrix again: time is traded for bounded memory.
    """

    def __init__(self, loader: Loader, *, counts_samples: bool) -> None:
        """Count how often each reference is needed; `loader` reads the steps that are measured."""
        work = loader.work
        self.put_off: dict[int, tuple[Reference | None, ...]] = {}
        self.cache = ReferenceCache(_KEPT_BYTES, counts_samples=counts_samples)
        self._references = work.references
        self._is_same_run = work.other is None
        self._loader = loader
        if work.other is not None:
            # References need no spectra, so their storage errors are not computed either.
            self._loader = Loader(replace(work, source=work.other), spectral=False)
        self._remaining_uses: Counter[int] = Counter()
        for step in work.steps:
            references = work.references.get(step, ())
            self._remaining_uses.update(pair.step for pair in references if pair is not None)

    @property
    def damages(self) -> dict[int, str]:
        """A sentence for each step of references that is not readable."""
        return self._loader.damages

    def measured(self, step: int) -> StepInputs | None:
        """Return the inputs of a step to be measured if they were kept as a reference before."""
        return self.cache.get(step) if self._is_same_run else None

    def keep(self, batch: Mapping[int, StepInputs]) -> None:
        """Keep those measured steps to which later steps are compared."""
        if not self._is_same_run:
            return
        for step, inputs in batch.items():
            # Copied, since the caller takes matrices out of its own dictionary as it goes.
            if self._remaining_uses[step] and self.cache.get(step) is None:
                self.cache.put(step, dict(inputs))

    def load(self, step: int) -> dict[Reference | None, StepInputs]:
        """Read the references of a step, {} for one that is missing, without those put off."""
        loaded: dict[Reference | None, StepInputs] = {}
        for reference in self._references.get(step, ()):
            inputs = {} if reference is None else self._load(reference.step)
            if inputs is None:
                self.put_off[step] = (*self.put_off.get(step, ()), reference)
            else:
                loaded[reference] = inputs
        return loaded

    def _load(self, step: int) -> StepInputs | None:
        """Read one reference for one comparison, or return None to put it off."""
        self._remaining_uses[step] -= 1
        is_last_use = self._remaining_uses[step] == 0
        # A last use needs no room, since its inputs are dropped when the step was measured.
        inputs = self.cache.get(step)
        if inputs is None:
            if self.cache.is_full and not is_last_use:
                return None
            inputs = self._loader.load(step)
            must_be_kept = bool(inputs) and not is_last_use
            if must_be_kept and not self.cache.put(step, inputs):
                return None
        if is_last_use:
            self.cache.release(step)
        return inputs


def load_batch(
    steps: Iterator[int], loader: Loader, references: ReferenceLoader
) -> dict[int, StepInputs]:
    """Read the next steps until their matrices fill `_BATCH_BYTES`; {} after the last.

    Steps that lack the unit are left out. The caller owns the batch: nothing here refers to it, so
    that a matrix is freed as soon as the caller drops it.
    """
    batch: dict[int, StepInputs] = {}
    size = 0
    for step in steps:
        inputs = references.measured(step) or loader.load(step)
        if inputs:
            batch[step] = dict(inputs)
        size += sum(one.bytes for one in inputs.values())
        if size > _BATCH_BYTES:
            break
    return batch
