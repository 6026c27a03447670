"""Matrices and their spectra, and the one policy on precision and tolerance.

Everything is computed in float64 on the CPU and judged by what rounding to the stored precision
can have changed. A matrix stored with unit roundoff u (half the eps of its dtype) and least
subnormal eta is W + E with |E_ij| <= u |W_ij| + eta / 2. By Weyl's inequality every singular value
is then known to within u ||W||_F + sqrt(m n) eta / 2, the `storage_error`. The decomposition in
float64 adds max(m, n) 2^-52 s_max. A singular value at or below the larger of the two,
`Spectrum.tol`, cannot be distinguished from zero.

Errors of sums and differences add, and scalars multiply them. A product of stored factors O V has
the error u (||O||_F ||V||_2 + ||O||_2 ||V||_F). This is a worst case: it is 7 to 46 times the true
error, and it grows with the width. Source: Golub & Van Loan, Matrix Computations, sec. 2.7
(rounding) and 8.6 (perturbed singular values).

Before squares are summed, entries whose fourth powers would leave the range of float64 are scaled
by a power of two (`normalized`), which rounds nothing.

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

_SAFE_FOR_NORMS = 1000
"""Values between 2^-1000 and 2^1000 stay within float64 (2^-1074 to 2^1024) if a few are summed."""


def coarser(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype with the largest eps, which limits the precision of a combination."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


@dataclass(frozen=True)
class FactoredMatrix:
    """The matrix scale * left @ right, (m, r) by (r, n), stored as its factors.

    r is small, and the m x n matrix itself is computed only by `dense`.
    """

    left: torch.Tensor  # (m, r)
    right: torch.Tensor  # (r, n)
    scale: float = 1.0
    terms: tuple[FactoredMatrix, ...] = ()
    """The products that this matrix is the sum of; their factors were stored, and rounded."""

    @classmethod
    def sum_of(cls, *terms: FactoredMatrix) -> FactoredMatrix:
        """Add products of one shape by placing their factors side by side."""
        # The rank grows to the sum of the ranks, but no (m, n) matrix is computed.
        left = torch.cat([term.scale * term.left.to(REAL) for term in terms], dim=1)
        right = torch.cat([term.right.to(REAL) for term in terms])
        return cls(left, right, terms=terms)

    def times(self, factor: float) -> FactoredMatrix:
        """Multiply by a scalar."""
        # The terms are scaled too: `storage_error` reads them alone.
        terms = tuple(term.times(factor) for term in self.terms)
        return FactoredMatrix(self.left, self.right, factor * self.scale, terms)

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest dtype in which a factor is stored."""
        stored = [term.dtype for term in self.terms] or [self.left.dtype, self.right.dtype]
        return coarser(*stored)

    def dense(self) -> torch.Tensor:
        """Multiply the factors: (m, n) float64."""
        return self.scale * (self.left.to(REAL) @ self.right.to(REAL))


Matrix = torch.Tensor | FactoredMatrix


class WeightUpdate(NamedTuple):
    """The change of a weight matrix over a window of steps, and its value at the start of it."""

    change: Matrix
    start: Matrix


class GradientStack(NamedTuple):
    """The gradients of m micro-batches at one point, each of the mean loss of its micro-batch."""

    gradients: torch.Tensor  # (m, ...) float64
    n_tokens: torch.Tensor  # (m,) float64: tokens in the loss of each micro-batch


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix of `shape` stored as `dtype`.

    Attributes:
        values: (<= k,) float64, descending; singular values beyond the last are exactly zero.
        rounding: the `storage_error` of the matrix, or None for a plain matrix of this dtype, where
            `tol` computes it. It is given for products, for differences, and for weights that were
            merged in a coarser dtype.
        exponent: `values` and `rounding` are in units of 2^exponent. It is 0 unless the largest
            value lies at the ends of the range of float64.
    """

    values: torch.Tensor
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
        """The singular values in units of the largest, which must not be zero."""
        return self.values / self.spectral_norm

    @cached_property
    def tol(self) -> float:
        """The tolerance, in the unit of the entries: a singular value up to it counts as zero."""
        return self.in_unit_of_entries(self._tol)

    @cached_property
    def _tol(self) -> float:
        stored = self.rounding
        if stored is None:
            stored = _entry_error(norm(self.values), self.shape, (self.dtype,), self.exponent)
        return max(stored, self._decomposition_error)

    @property
    def _decomposition_error(self) -> float:
        # The backward error of the SVD (Golub & Van Loan, sec. 8.6)
        return max(self.shape) * torch.finfo(REAL).eps * self.spectral_norm

    def in_unit_of_entries(self, value: float) -> float:
        """Convert from units of 2^exponent; 0 or infinite beyond the range of float64."""
        return times_power(value, self.exponent)

    @cached_property
    def significant(self) -> torch.Tensor:
        """The singular values above the tolerance."""
        return self.values[self.values > self._tol]

    @cached_property
    def nonzero(self) -> torch.Tensor:
        """The singular values that float64 distinguishes from 0, whatever the stored precision."""
        return self.values[self.values > self._decomposition_error]

    @cached_property
    def power_law(self) -> PowerLaw | None:
        """The power law fitted to the eigenvalues s^2 of `nonzero`; None if they are all equal."""
        # In units of the largest value, whose square could leave the range of float64
        law = fit(2 * (self.nonzero / self.spectral_norm).log())
        if law is None:
            return None
        return law._replace(least=law.least * self.spectral_norm * self.spectral_norm)


def spectra(matrices: Sequence[Matrix]) -> list[Spectrum]:
    """Decompose finite matrices; those of equal shape and dtype are decomposed as one batch.

    A product costs only the decomposition of its small core. With left = Q1 R1 and right^T = Q2 R2
    the singular values of left @ right are those of R1 @ R2^T, which is at most (r, r), since Q1
    and Q2 have orthonormal columns.
    """
    batches: dict[object, list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        key = _batch_key(matrix)
        batches[key].append(index)
    by_index: dict[int, Spectrum] = {}
    for indices in batches.values():
        batch = [matrices[index] for index in indices]
        decomposed = _decompose(batch)
        by_index.update(zip(indices, decomposed, strict=True))
    order = range(len(matrices))
    return [by_index[index] for index in order]


def _batch_key(matrix: Matrix) -> object:
    inner_dimension = matrix.left.shape[1] if isinstance(matrix, FactoredMatrix) else None
    return tuple(matrix.shape), inner_dimension, matrix.dtype


def _decompose(matrices: Sequence[Matrix]) -> list[Spectrum]:
    """Compute the spectra of matrices that have one shape, inner dimension and dtype."""
    scaled, exponents = zip(*map(normalized, matrices), strict=True)
    # One call for a batch of small matrices is much faster than one for each.
    values = singular_values(_cores(scaled), matrices[0].dtype)
    return [
        _spectrum(matrix, row, exponent)
        for matrix, row, exponent in zip(matrices, values, exponents, strict=True)
    ]


def _spectrum(matrix: Matrix, values: torch.Tensor, exponent: int) -> Spectrum:
    """Build a spectrum from singular values in units of 2^exponent."""
    magnitude = math.frexp(float(values[0]))[1] + exponent
    if exponent and abs(magnitude) < _SAFE_FOR_NORMS:
        # Usually the values fit into float64 without the exponent, and readers need not know of it.
        values, exponent = times_powers(values, exponent), 0
    rounding = (
        storage_error(matrix, unit=exponent) if isinstance(matrix, FactoredMatrix) else None
    )
    return Spectrum(
        values, (matrix.shape[0], matrix.shape[1]), matrix.dtype, rounding, exponent
    )


def _cores(matrices: Sequence[Matrix]) -> torch.Tensor:
    """Stack matrices with the singular values of the given ones, float64.

    Plain matrices are stacked themselves, (b, m, n); products as their cores, (b, <= r, <= r). All
    are of one type and shape.
    """
    products = [matrix for matrix in matrices if isinstance(matrix, FactoredMatrix)]
    if products:
        return _cores_of_products(products)
    plain = [matrix for matrix in matrices if isinstance(matrix, torch.Tensor)]
    return torch.stack(plain).to(REAL)


def _cores_of_products(products: Sequence[FactoredMatrix]) -> torch.Tensor:
    left = torch.stack([product.left for product in products])  # (b, m, r)
    right = torch.stack([product.right for product in products])  # (b, r, n)
    scales = torch.tensor([product.scale for product in products], dtype=REAL)
    core = _triangle(left) @ _triangle(right.mT).mT
    return scales[:, None, None] * core


def _triangle(factors: torch.Tensor) -> torch.Tensor:
    """Return R of the QR decomposition of each factor: (b, <= r, r)."""
    return torch.linalg.qr(factors.to(REAL), mode="r").R


def storage_error(matrix: Matrix, *merged: torch.dtype, unit: int = 0) -> float:
    """Bound the 2-norm of what rounding to the stored dtype can have added to a finite matrix.

    Args:
        merged: dtypes that the matrix, or the factors of a product, went through before they were
            stored.
        unit: the result is in units of 2^unit.
    """
    if isinstance(matrix, FactoredMatrix):
        return _product_error(matrix, merged, unit)
    scaled, exponent = normalized_entries(matrix)
    size = float(torch.linalg.vector_norm(scaled))
    error = _entry_error(size, matrix.shape, (matrix.dtype, *merged), exponent)
    return times_power(error, exponent - unit)


def _product_error(product: FactoredMatrix, merged: Sequence[torch.dtype], unit: int) -> float:
    """Compute the `storage_error` of a product, to first order in the errors of its factors."""
    if product.terms:
        return sum(storage_error(term, *merged, unit=unit) for term in product.terms)
    left = _factor_error(product.left, merged)
    right = _factor_error(product.right, merged)
    error = abs(product.scale) * (left.error * right.norm + left.norm * right.error)
    return times_power(error, left.exponent + right.exponent - unit)


class _FactorError(NamedTuple):
    """The `storage_error` of a factor and its 2-norm, both in units of 2^exponent."""

    error: float
    norm: float
    exponent: int


def _factor_error(factor: torch.Tensor, merged: Sequence[torch.dtype]) -> _FactorError:
    scaled, exponent = normalized_entries(factor)
    tall = scaled if scaled.shape[0] >= scaled.shape[1] else scaled.T
    # The smaller Gram matrix gives both norms: its trace is ||.||_F^2, its largest eigenvalue
    # ||.||_2^2.
    squares = torch.linalg.eigvalsh(tall.T @ tall).clamp(min=0)
    error = _entry_error(
        math.sqrt(squares.sum()), factor.shape, (factor.dtype, *merged), exponent
    )
    return _FactorError(error, math.sqrt(squares[-1]), exponent)


def _entry_error(
    size: float, shape: Sequence[int], dtypes: Sequence[torch.dtype], exponent: int = 0
) -> float:
    """Compute u ||W||_F + sqrt(m n) eta / 2 with the largest u and the largest eta of the dtypes.

    `size` is ||W||_F; it and the result are in units of 2^exponent.
    """
    unit_roundoff = max(torch.finfo(dtype).eps for dtype in dtypes) / 2
    # It matters for float16 and float8, in which small entries round to 0.
    least_subnormal = times_power(max(map(_least_subnormal, dtypes)), -exponent)
    return unit_roundoff * size + math.sqrt(math.prod(shape)) / 2 * least_subnormal


def _least_subnormal(dtype: torch.dtype) -> float:
    limits = torch.finfo(dtype)
    return limits.smallest_normal * limits.eps


def normalized(matrix: Matrix) -> tuple[Matrix, int]:
    """Divide a matrix by a power of two, 2^e, and return it in float64 with e.

    e is 0 unless the entries are extreme.
    """
    if not isinstance(matrix, FactoredMatrix):
        return normalized_entries(matrix)
    left, left_exponent = normalized_entries(matrix.left)
    right, right_exponent = normalized_entries(matrix.right)
    return FactoredMatrix(left, right, matrix.scale), left_exponent + right_exponent


def difference(new: Matrix, old: Matrix) -> Matrix:
    """Compute new - old in float64; for products, as one product (m, 2r) by (2r, n)."""
    if isinstance(new, FactoredMatrix) and isinstance(old, FactoredMatrix):
        # The sum remembers its terms, since their rounding is what `storage_error` bounds.
        return FactoredMatrix.sum_of(new, old.times(-1))
    if isinstance(new, FactoredMatrix) or isinstance(old, FactoredMatrix):
        raise TypeError("a product and a plain matrix have no difference here")
    return new.to(REAL) - old.to(REAL)


def inner(a: Matrix, b: Matrix) -> float:
    """Sum the products of corresponding entries of two matrices (or products) of one shape."""
    if isinstance(a, FactoredMatrix) and isinstance(b, FactoredMatrix):
        return _inner_of_products(a, b)
    if isinstance(a, FactoredMatrix) or isinstance(b, FactoredMatrix):
        raise TypeError("a product and a plain matrix have no inner product here")
    return float((a.to(REAL) * b.to(REAL)).sum())


def _inner_of_products(a: FactoredMatrix, b: FactoredMatrix) -> float:
    # tr((L R)^T (L' R')) is the sum of (L^T L') * (R R'^T), entry by entry, both (r, r).
    left = a.left.to(REAL).T @ b.left.to(REAL)
    right = a.right.to(REAL) @ b.right.to(REAL).T
    return a.scale * b.scale * float((left * right).sum())


def norm(matrix: Matrix) -> float:
    """Compute the Euclidean norm of the entries; for a product, from its core."""
    scaled, exponent = normalized(matrix)
    entries_or_core = _cores([scaled]) if isinstance(scaled, FactoredMatrix) else scaled
    return times_power(float(torch.linalg.vector_norm(entries_or_core)), exponent)


def norm_ratio(a: Matrix, b: Matrix) -> float | None:
    """Compute ||a||_F / ||b||_F, within float64 even if the norms are not; None if b is zero."""
    a, a_exponent = normalized(a)
    b, b_exponent = normalized(b)
    b_norm = norm(b)
    # Each norm may leave the range of float64 although the ratio does not.
    return times_power(norm(a) / b_norm, a_exponent - b_exponent) if b_norm > 0 else None


def is_finite(matrix: Matrix) -> bool:
    """Return whether no entry, of either factor for a product, is NaN or infinite."""
    parts = (matrix.left, matrix.right) if isinstance(matrix, FactoredMatrix) else (matrix,)
    # torch sums no float8
    return all(
        _all_finite(part.to(REAL) if part.dtype.itemsize == 1 else part) for part in parts
    )


def _all_finite(x: torch.Tensor) -> bool:
    # A finite sum proves finite entries and allocates nothing; an infinite one may be an overflow.
    return math.isfinite(x.sum()) or bool(torch.isfinite(x).all())


def entries(matrix: torch.Tensor) -> torch.Tensor:
    """Convert a matrix or vector to float64."""
    return matrix.to(REAL)


def sorted_magnitudes(x: torch.Tensor) -> torch.Tensor:
    """Sort |x|, flattened, in ascending order; float64."""
    magnitudes = x.abs().flatten()
    # numpy's vectorised sort is several times faster than torch's on the CPU, and faster again in
    # fp32, which holds the values of most stored dtypes exactly.
    narrow = magnitudes.float()
    exact = narrow if torch.equal(narrow.to(REAL), magnitudes) else magnitudes
    return torch.from_numpy(np.sort(exact.numpy())).to(REAL)
