"""Spectra, ranks, centring, and the one policy on precision and tolerance.

Everything is computed in float64 on CPU and judged with the precision that was stored: a singular value counts as zero
when it is at most tol = max(m, n) * eps(storage dtype) * s_max (Golub & Van Loan, Matrix Computations, sec. 5.4.1, as
in numpy's matrix_rank, but with the eps of the dtype in which the matrix was kept, since that is where it was rounded).

Shapes: a matrix is (m, n); k = min(m, n); r is the inner dimension of a product; a sample is (rows, width).
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

from pico_analyze.decompositions import REAL, singular_values
from pico_analyze.power_law import PowerLaw, fit


def coarser(*dtypes: torch.dtype) -> torch.dtype:
    """The one of the floating-point `dtypes` with the largest eps: what is made of several is as exact as that."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Product:
    """The matrix left @ right, (m, r) by (r, n), kept as its factors: r is small and m x n never needs to be formed."""

    left: torch.Tensor  # (m, r)
    right: torch.Tensor  # (r, n)

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return coarser(self.left.dtype, self.right.dtype)

    def dense(self) -> torch.Tensor:
        """(m, n) float64."""
        return self.left.to(REAL) @ self.right.to(REAL)


Matrix = torch.Tensor | Product


class Update(NamedTuple):
    """What a matrix changed by over a window of steps, and what it was at its start."""

    change: Matrix
    start: Matrix


class MicroBatches(NamedTuple):
    """The gradient of the mean loss of each of m micro-batches, at one point."""

    gradients: torch.Tensor  # (m, ...) float64
    terms: torch.Tensor  # (m,) float64: of the loss, in each


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix of `shape` stored as `dtype`; those beyond len(values) are exactly zero.

    `scale` is the s_max that rounding is relative to, where that is not the matrix's own: for a difference of two
    matrices, s_max of the larger operand.
    """

    values: torch.Tensor  # (<= k,) float64, descending
    shape: tuple[int, int]
    dtype: torch.dtype
    scale: float | None = None

    @property
    def full_rank(self) -> int:
        return min(self.shape)

    @property
    def largest(self) -> float:
        return float(self.values[0])

    @cached_property
    def tol(self) -> float:
        """At or below this a singular value counts as zero."""
        scale = self.largest if self.scale is None else self.scale
        return max(self.shape) * torch.finfo(self.dtype).eps * scale

    @cached_property
    def significant(self) -> torch.Tensor:
        """The singular values above `tol`."""
        return self.values[self.values > self.tol]

    @cached_property
    def nonzero(self) -> torch.Tensor:
        """The singular values that float64 tells from 0, whatever the stored precision."""
        return self.values[self.values > max(self.shape) * torch.finfo(REAL).eps * self.largest]

    @cached_property
    def power_law(self) -> PowerLaw | None:
        """The power law of the eigenvalues s^2 that `nonzero` gives; None where they are all equal."""
        return fit(2 * self.nonzero.log())


def spectra(matrices: Sequence[Matrix]) -> list[Spectrum]:
    """Spectra of finite matrices, one decomposition each; equal shapes and dtypes are decomposed as one batch.

    A product costs that of its small core: with left = Q1 R1 and right^T = Q2 R2 the singular values of left @ right
    are those of R1 @ R2^T, at most (r, r), since Q1 and Q2 have orthonormal columns.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        inner = matrix.left.shape[1] if isinstance(matrix, Product) else None
        groups[tuple(matrix.shape), inner, matrix.dtype].append(index)
    found: dict[int, Spectrum] = {}
    for indices in groups.values():
        values = singular_values(_batch([matrices[i] for i in indices]), matrices[indices[0]].dtype)
        for index, row in zip(indices, values, strict=True):
            matrix = matrices[index]
            found[index] = Spectrum(row, (matrix.shape[0], matrix.shape[1]), matrix.dtype)
    return [found[i] for i in range(len(matrices))]


def _batch(matrices: list[Matrix]) -> torch.Tensor:
    """(b, m, n) float64 of plain matrices, (b, <= r, <= r) cores of products; all of one kind and shape."""
    if not isinstance(matrices[0], Product):
        return torch.stack([m for m in matrices if isinstance(m, torch.Tensor)]).to(REAL)
    products = [m for m in matrices if isinstance(m, Product)]
    left = torch.linalg.qr(torch.stack([p.left for p in products]).to(REAL), mode="r").R  # (b, <= r, r)
    right = torch.linalg.qr(torch.stack([p.right for p in products]).to(REAL).mT, mode="r").R  # (b, <= r, r)
    return left @ right.mT


def difference(new: Matrix, old: Matrix) -> Matrix:
    """new - old in float64; of products as a product of their stacked factors, (m, 2r) by (2r, n)."""
    if isinstance(new, Product) and isinstance(old, Product):
        left = torch.cat([new.left.to(REAL), -old.left.to(REAL)], dim=1)
        return Product(left, torch.cat([new.right.to(REAL), old.right.to(REAL)]))
    if isinstance(new, Product) or isinstance(old, Product):
        raise TypeError("a product and a plain matrix have no difference here")
    return new.to(REAL) - old.to(REAL)


def inner(a: Matrix, b: Matrix) -> float:
    """Sum of the products of corresponding entries, of two matrices or two products of one shape."""
    if isinstance(a, Product) and isinstance(b, Product):
        left, right = a.left.to(REAL).T @ b.left.to(REAL), a.right.to(REAL) @ b.right.to(REAL).T
        return float((left * right).sum())
    if isinstance(a, Product) or isinstance(b, Product):
        raise TypeError("a product and a plain matrix have no inner product here")
    return float((a.to(REAL) * b.to(REAL)).sum())


def norm(matrix: Matrix) -> float:
    """Euclidean norm of the entries; of a product from its core."""
    dense = _batch([matrix]) if isinstance(matrix, Product) else matrix.to(REAL)
    return float(torch.linalg.vector_norm(dense))


def largest(matrix: Matrix) -> float:
    """s_max of a finite matrix, from the smaller Gram matrix: exact for the largest, and faster than a spectrum."""
    core = _batch([matrix])[0]
    core = core if core.shape[0] >= core.shape[1] else core.T
    return float(torch.linalg.eigvalsh(core.T @ core)[-1].clamp(min=0).sqrt())


def is_finite(matrix: Matrix) -> bool:
    """Whether no entry (of either factor) is NaN or infinite: so if their sum is, else each is looked at."""
    parts = (matrix.left, matrix.right) if isinstance(matrix, Product) else (matrix,)
    return all(math.isfinite(part.sum()) or bool(torch.isfinite(part).all()) for part in parts)


def entries(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix or vector in float64."""
    return matrix.to(REAL)


def sorted_magnitudes(x: torch.Tensor) -> torch.Tensor:
    """|x| flattened and ascending, float64.

    numpy's vectorised sort is several times faster than torch's on CPU, and where fp32 is exact faster again.
    """
    magnitudes = x.abs().flatten()
    narrow = magnitudes.float()
    exact = narrow if torch.equal(narrow.to(REAL), magnitudes) else magnitudes
    return torch.from_numpy(np.sort(exact.numpy())).to(REAL)
