"""What metrics are given of one matrix, with the precision that it is judged by."""

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
    """What metrics of one matrix are given, under the names of `Metric.needs`, each made once.

    `dtype` is the coarsest dtype in which the matrix, or what it is a difference of, was merged or
    stored; `rounding` is `linalg.Spectrum.rounding`. `start` is what an update began from; `n_tokens`
    are those of the loss in each of the micro-batches of a stack; `positions` are the rows of
    activations that belong to each probe row.
    """

    matrix: linalg.Matrix
    dtype: torch.dtype
    rounding: float | None = None
    start: linalg.Matrix | None = None
    n_tokens: Sequence[int] = ()
    positions: int = 1

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
        return self.with_storage_tolerance(linalg.spectra([self.matrix])[0])

    @cached_property
    def entries(self) -> torch.Tensor:
        """In float64."""
        return (
            self.matrix.dense()
            if isinstance(self.matrix, linalg.FactoredMatrix)
            else linalg.entries(self.matrix)
        )

    @cached_property
    def sample(self) -> Sample:
        """The rows as observations."""
        return Sample.of(self.matrix, self.positions)

    @cached_property
    def update(self) -> linalg.WeightUpdate:
        """The change with what it changed."""
        assert self.start is not None
        return linalg.WeightUpdate(self.matrix, self.start)

    @cached_property
    def micro_batches(self) -> linalg.GradientStack:
        """The stack with the terms of each of its gradients."""
        return linalg.GradientStack(self.entries, torch.tensor(self.n_tokens, dtype=REAL))

    def with_storage_tolerance(self, spectrum: linalg.Spectrum) -> linalg.Spectrum:
        """The matrix's spectrum, its tolerance that of how the matrix was stored."""
        rounding = spectrum.rounding
        if self.rounding is not None:
            rounding = times_power(self.rounding, -spectrum.exponent)
        return replace(spectrum, dtype=self.dtype, rounding=rounding)

    @property
    def bytes(self) -> int:
        """Of the matrix (or its factors) in float64, and of what it began from."""
        parts = [self.matrix] if self.start is None else [self.matrix, self.start]
        return 8 * sum(
            m.left.numel() + m.right.numel() if isinstance(m, linalg.FactoredMatrix) else m.numel()
            for m in parts
        )

    @property
    def sample_bytes(self) -> int:
        """At most this much is made of the matrix as a sample: rows, both sides of the basis, five
        squares of rows."""
        rows, width = self.matrix.shape
        return 8 * (3 * rows * width + 5 * rows**2)


def decompose(batch: list[MetricInputs]) -> None:
    """Give each finite matrix its spectrum; equal shapes are decomposed together."""
    finite = [one for one in batch if len(one.matrix.shape) == 2 and one.finite]
    for one, spectrum in zip(finite, linalg.spectra([one.matrix for one in finite]), strict=True):
        one.spectrum = one.with_storage_tolerance(spectrum)
