"""Spectra, ranks, centring, and the one policy on precision and tolerance.

Everything is computed in float64 on CPU and judged by what the stored precision can have done. A
matrix stored with unit roundoff u (half the eps of its dtype) and least subnormal eta is W + E with
|E_ij| <= u |W_ij| + eta / 2. So, by Weyl's inequality, every singular value is known to within u
||W||_F + sqrt(m n) eta / 2, the `storage_error`. The float64 decomposition adds max(m, n) 2^-52
s_max. A singular value at or below the larger of the two, `Spectrum.tol`, cannot be told from zero.
Errors of sums and differences add, scalars multiply them, and a product of stored factors O V has u
(||O||_F ||V||_2 + ||O||_2 ||V||_F). This is a worst case, 7 to 46 times the true error, and it
grows with the width. Source: Golub & Van Loan, Matrix Computations, sec. 2.7 (rounding) and 8.6
(perturbed singular values).

Where squares are summed, entries whose fourth powers would leave the range of float64 are scaled
first by a power of two (`normalized`), which rounds nothing.

Shapes: a matrix is (m, n); k = min(m, n); r is the inner dimension of a product; a sample is (rows,
width).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from pico_analyze.linalg.decompositions import REAL, singular_values
from pico_analyze.linalg.power_law import PowerLaw, fit
from pico_analyze.linalg.scaling import normalized_entries, times_power, times_powers


def coarser(*dtypes: torch.dtype) -> torch.dtype:
    """The one of the floating-point `dtypes` with the largest eps: what is made of several is as
    exact as that."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


@dataclass(frozen=True)
class FactoredMatrix:
    """The matrix scale * left @ right, (m, r) by (r, n), kept as its factors: r is small and m x n
    is never formed."""

    left: torch.Tensor  # (m, r)
    right: torch.Tensor  # (r, n)
    scale: float = 1.0
    terms: tuple[FactoredMatrix, ...] = ()
    """The products that this is the sum of, if it is a sum: their factors are what was stored, and
    rounded."""

    @classmethod
    def sum_of(cls, *terms: FactoredMatrix) -> FactoredMatrix:
        """The sum of products of one shape, as one product of their factors side by side."""
        left = torch.cat([term.scale * term.left.to(REAL) for term in terms], dim=1)
        return cls(left, torch.cat([term.right.to(REAL) for term in terms]), terms=terms)

    def times(self, factor: float) -> FactoredMatrix:
        """The product multiplied by a scalar."""
        return FactoredMatrix(
            self.left,
            self.right,
            factor * self.scale,
            tuple(term.times(factor) for term in self.terms),
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest dtype in which a factor is stored."""
        stored = [term.dtype for term in self.terms] or [self.left.dtype, self.right.dtype]
        return coarser(*stored)

    def dense(self) -> torch.Tensor:
        """(m, n) float64."""
        return self.scale * (self.left.to(REAL) @ self.right.to(REAL))


Matrix = torch.Tensor | FactoredMatrix


class WeightUpdate(NamedTuple):
    """What a matrix changed by over a window of steps, and what it was at its start."""

    change: Matrix
    start: Matrix


class GradientStack(NamedTuple):
    """The gradient of the mean loss of each of m micro-batches, at one point."""

    gradients: torch.Tensor  # (m, ...) float64
    n_tokens: torch.Tensor  # (m,) float64: of the loss, in each


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix of `shape` stored as `dtype`; those beyond len(values) are
    exactly zero.

    `rounding` is the `storage_error` of the matrix if it is not that of a plain matrix of this
    dtype: of products and differences, and of weights that were merged in a coarser dtype. `values`
    and `rounding` are in units of 2^exponent, which is 1 unless s_max lies at the ends of float64.
    """

    values: torch.Tensor  # (<= k,) float64, descending
    shape: tuple[int, int]
    dtype: torch.dtype
    rounding: float | None = None
    exponent: int = 0

    @property
    def full_rank(self) -> int:
        return min(self.shape)

    @property
    def spectral_norm(self) -> float:
        return float(self.values[0])

    @cached_property
    def relative(self) -> torch.Tensor:
        """The singular values in units of the largest, which is not zero."""
        return self.values / self.spectral_norm

    @cached_property
    def tol(self) -> float:
        """At or below this a singular value counts as zero, in the unit of the entries."""
        return self.in_unit_of_entries(self._tol)

    @cached_property
    def _tol(self) -> float:
        stored = self.rounding
        if stored is None:
            stored = _entry_error(norm(self.values), self.shape, (self.dtype,), self.exponent)
        return max(stored, max(self.shape) * torch.finfo(REAL).eps * self.spectral_norm)

    def in_unit_of_entries(self, value: float) -> float:
        """A number in units of 2^exponent as what it is; 0 or infinite where float64 ends."""
        return times_power(value, self.exponent)

    @cached_property
    def significant(self) -> torch.Tensor:
        """The singular values above the tolerance."""
        return self.values[self.values > self._tol]

    @cached_property
    def nonzero(self) -> torch.Tensor:
        """The singular values that float64 tells from 0, whatever the stored precision."""
        return self.values[
            self.values > max(self.shape) * torch.finfo(REAL).eps * self.spectral_norm
        ]

    @cached_property
    def power_law(self) -> PowerLaw | None:
        """The power law of the eigenvalues s^2 that `nonzero` gives; None where they are all
        equal."""
        found = fit(2 * (self.nonzero / self.spectral_norm).log())
        return found and found._replace(least=found.least * self.spectral_norm * self.spectral_norm)


def spectra(matrices: Sequence[Matrix]) -> list[Spectrum]:
    """Spectra of finite matrices, one decomposition each; equal shapes and dtypes are decomposed as
    one batch.

    A product costs that of its small core: with left = Q1 R1 and right^T = Q2 R2 the singular
    values of left @ right are those of R1 @ R2^T, at most (r, r), since Q1 and Q2 have orthonormal
    columns.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        inner = matrix.left.shape[1] if isinstance(matrix, FactoredMatrix) else None
        groups[tuple(matrix.shape), inner, matrix.dtype].append(index)
    found: dict[int, Spectrum] = {}
    for indices in groups.values():
        scaled, exponents = zip(*(normalized(matrices[i]) for i in indices), strict=True)
        values = singular_values(_batch(scaled), matrices[indices[0]].dtype)
        for index, row, exponent in zip(indices, values, exponents, strict=True):
            found[index] = _spectrum(matrices[index], row, exponent)
    return [found[i] for i in range(len(matrices))]


def _spectrum(matrix: Matrix, values: torch.Tensor, exponent: int) -> Spectrum:
    """Of singular values in units of 2^exponent, which is kept only where float64 does not hold
    them otherwise."""
    if exponent and -1000 < math.frexp(float(values[0]))[1] + exponent < 1000:
        values, exponent = times_powers(values, exponent), 0
    rounding = storage_error(matrix, unit=exponent) if isinstance(matrix, FactoredMatrix) else None
    return Spectrum(values, (matrix.shape[0], matrix.shape[1]), matrix.dtype, rounding, exponent)


def _batch(matrices: Sequence[Matrix]) -> torch.Tensor:
    """(b, m, n) float64 of plain matrices, (b, <= r, <= r) cores of products; all of one kind and
    shape."""
    if not isinstance(matrices[0], FactoredMatrix):
        return torch.stack([m for m in matrices if isinstance(m, torch.Tensor)]).to(REAL)
    products = [m for m in matrices if isinstance(m, FactoredMatrix)]
    left = torch.linalg.qr(
        torch.stack([p.left for p in products]).to(REAL), mode="r"
    ).R  # (b, <= r, r)
    right = torch.linalg.qr(
        torch.stack([p.right for p in products]).to(REAL).mT, mode="r"
    ).R  # (b, <= r, r)
    scales = torch.tensor([p.scale for p in products], dtype=REAL)
    return scales[:, None, None] * (left @ right.mT)


def storage_error(matrix: Matrix, *merged: torch.dtype, unit: int = 0) -> float:
    """The largest 2-norm of what rounding to the stored dtype can have added to a finite matrix.

    Args:
        merged: dtypes that the matrix, or the factors of a product, went through before they were
            stored.
        unit: the result is in units of 2^unit.
    """
    if not isinstance(matrix, FactoredMatrix):
        scaled, exponent = normalized_entries(matrix)
        size = float(torch.linalg.vector_norm(scaled))
        return times_power(
            _entry_error(size, matrix.shape, (matrix.dtype, *merged), exponent), exponent - unit
        )
    if matrix.terms:
        return sum(storage_error(term, *merged, unit=unit) for term in matrix.terms)
    left, left_norm, of_left = _factor_error(matrix.left, merged)
    right, right_norm, of_right = _factor_error(matrix.right, merged)
    error = abs(matrix.scale) * (left * right_norm + left_norm * right)
    return times_power(error, of_left + of_right - unit)


def _factor_error(factor: torch.Tensor, merged: Sequence[torch.dtype]) -> tuple[float, float, int]:
    """The `storage_error` of a factor and its 2-norm in units of 2^e, and e; from its smaller Gram
    matrix."""
    scaled, exponent = normalized_entries(factor)
    tall = scaled if scaled.shape[0] >= scaled.shape[1] else scaled.T
    squares = torch.linalg.eigvalsh(tall.T @ tall).clamp(min=0)
    error = _entry_error(math.sqrt(squares.sum()), factor.shape, (factor.dtype, *merged), exponent)
    return error, math.sqrt(squares[-1]), exponent


def _entry_error(
    size: float, shape: Sequence[int], dtypes: Sequence[torch.dtype], exponent: int = 0
) -> float:
    """u ||W||_F + sqrt(m n) eta / 2 for ||W||_F = `size`, with the largest u and the largest eta of
    the dtypes.

    Both in units of 2^exponent.
    """
    unit_roundoff = max(torch.finfo(dtype).eps for dtype in dtypes) / 2
    least_subnormal = times_power(max(map(_least_subnormal, dtypes)), -exponent)
    return unit_roundoff * size + math.sqrt(math.prod(shape)) / 2 * least_subnormal


def _least_subnormal(dtype: torch.dtype) -> float:
    of = torch.finfo(dtype)
    return of.smallest_normal * of.eps


def normalized(matrix: Matrix) -> tuple[Matrix, int]:
    """The matrix in float64 divided by a power of two, 2^e, and e, which is 0 unless its entries
    are extreme."""
    if not isinstance(matrix, FactoredMatrix):
        return normalized_entries(matrix)
    left, of_left = normalized_entries(matrix.left)
    right, of_right = normalized_entries(matrix.right)
    return FactoredMatrix(left, right, matrix.scale), of_left + of_right


def difference(new: Matrix, old: Matrix) -> Matrix:
    """new - old in float64; of products as a product of their stacked factors, (m, 2r) by (2r,
    n)."""
    if isinstance(new, FactoredMatrix) and isinstance(old, FactoredMatrix):
        return FactoredMatrix.sum_of(new, old.times(-1))
    if isinstance(new, FactoredMatrix) or isinstance(old, FactoredMatrix):
        raise TypeError("a product and a plain matrix have no difference here")
    return new.to(REAL) - old.to(REAL)


def inner(a: Matrix, b: Matrix) -> float:
    """Sum of the products of corresponding entries, of two matrices or two products of one
    shape."""
    if isinstance(a, FactoredMatrix) and isinstance(b, FactoredMatrix):
        left, right = a.left.to(REAL).T @ b.left.to(REAL), a.right.to(REAL) @ b.right.to(REAL).T
        return a.scale * b.scale * float((left * right).sum())
    if isinstance(a, FactoredMatrix) or isinstance(b, FactoredMatrix):
        raise TypeError("a product and a plain matrix have no inner product here")
    return float((a.to(REAL) * b.to(REAL)).sum())


def norm(matrix: Matrix) -> float:
    """Euclidean norm of the entries; of a product from its core."""
    scaled, exponent = normalized(matrix)
    dense = _batch([scaled]) if isinstance(scaled, FactoredMatrix) else scaled
    return times_power(float(torch.linalg.vector_norm(dense)), exponent)


def norm_ratio(a: Matrix, b: Matrix) -> float | None:
    """||a||_F / ||b||_F, within float64 even if the norms are not; None for b of zero."""
    (of_a, exponent_a), (of_b, exponent_b) = normalized(a), normalized(b)
    return times_power(norm(of_a) / norm(of_b), exponent_a - exponent_b) if norm(of_b) > 0 else None


def is_finite(matrix: Matrix) -> bool:
    """Whether no entry (of either factor) is NaN or infinite: so if their sum is, else each is
    looked at."""
    parts = (matrix.left, matrix.right) if isinstance(matrix, FactoredMatrix) else (matrix,)
    return all(_all_finite(part.to(REAL) if part.dtype.itemsize == 1 else part) for part in parts)


def _all_finite(x: torch.Tensor) -> bool:
    return math.isfinite(x.sum()) or bool(torch.isfinite(x).all())


def entries(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix or vector in float64."""
    return matrix.to(REAL)


def sorted_magnitudes(x: torch.Tensor) -> torch.Tensor:
    """|x| flattened and ascending, float64.

    numpy's vectorised sort is several times faster than torch's on CPU, and where fp32 is exact
    faster again.
    """
    magnitudes = x.abs().flatten()
    narrow = magnitudes.float()
    exact = narrow if torch.equal(narrow.to(REAL), magnitudes) else magnitudes
    return torch.from_numpy(np.sort(exact.numpy())).to(REAL)
