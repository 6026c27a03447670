"""The arguments of metrics: one matrix, everything derived from it, and its precision."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from pico_analyze import linalg
from pico_analyze.linalg.decompositions import REAL
from pico_analyze.linalg.sample import Sample
from pico_analyze.linalg.scaling import times_power


@dataclass(eq=False)
class MetricInputs:
    """The arguments of metrics of one matrix by the names of `Metric.needs`, each computed once.

    `dtype` is the coarsest dtype in which the matrix, or the ends of an update, were merged or
    stored; `rounding` is `linalg.Spectrum.rounding`. `start` is the start of an update. `n_tokens`
    counts the terms of the loss in each micro-batch of a stack, `positions` the rows of activations
    that belong to each probe row.
    """

    matrix: linalg.Matrix
    dtype: torch.dtype
    rounding: float | None = None
    start: linalg.Matrix | None = None
    n_tokens: Sequence[int] = ()
    positions: int = 1

    @cached_property
    def finite(self) -> bool:
        """Whether no entry is NaN or infinite; otherwise nothing is measured."""
        return linalg.is_finite(self.matrix)

    @cached_property
    def stored(self) -> tuple[int, int, str]:
        """Rows, columns and dtype as the table has them."""
        rows, *rest = self.matrix.shape
        # Interned, since every row of the table refers to this text.
        dtype = sys.intern(str(self.dtype).removeprefix("torch."))
        return rows, math.prod(rest), dtype

    @cached_property
    def spectrum(self) -> linalg.Spectrum:
        """The singular values; computed for this matrix alone unless `decompose` has set them."""
        return self.with_storage_tolerance(linalg.spectra([self.matrix])[0])

    @cached_property
    def entries(self) -> torch.Tensor:
        """All entries in float64."""
        if isinstance(self.matrix, linalg.FactoredMatrix):
            return self.matrix.dense()
        return linalg.entries(self.matrix)

    @cached_property
    def sample(self) -> Sample:
        """The rows as observations."""
        return Sample.of(self.matrix, self.positions)

    @cached_property
    def update(self) -> linalg.WeightUpdate:
        """The change together with the matrix that changed."""
        assert self.start is not None
        return linalg.WeightUpdate(self.matrix, self.start)

    @cached_property
    def micro_batches(self) -> linalg.GradientStack:
        """The stack of gradients with the terms of the loss that each is the mean over."""
        return linalg.GradientStack(self.entries, torch.tensor(self.n_tokens, dtype=REAL))

    def with_storage_tolerance(self, spectrum: linalg.Spectrum) -> linalg.Spectrum:
        """Give a spectrum of the matrix the tolerance that follows from its storage."""
        rounding = spectrum.rounding
        if self.rounding is not None:
            rounding = times_power(self.rounding, -spectrum.exponent)
        return replace(spectrum, dtype=self.dtype, rounding=rounding)

    @property
    def bytes(self) -> int:
        """Size in float64 of the matrix, or its factors, and of the start of an update."""
        size = _n_stored(self.matrix)
        if self.start is not None:
            size += _n_stored(self.start)
        return 8 * size

    @property
    def sample_bytes(self) -> int:
        """Upper bound of what `sample` caches: rows, both bases, and five (rows, rows) matrices."""
        rows, width = self.matrix.shape
        return 8 * (3 * rows * width + 5 * rows**2)


def _n_stored(matrix: linalg.Matrix) -> int:
    if isinstance(matrix, linalg.FactoredMatrix):
        return matrix.left.numel() + matrix.right.numel()
    return matrix.numel()


def decompose(batch: list[MetricInputs]) -> None:
    """Set the spectrum of each finite matrix; equal shapes are decomposed together."""
    finite = [inputs for inputs in batch if len(inputs.matrix.shape) == 2 and inputs.finite]
    spectra = linalg.spectra([inputs.matrix for inputs in finite])
    for inputs, spectrum in zip(finite, spectra, strict=True):
        inputs.spectrum = inputs.with_storage_tolerance(spectrum)
