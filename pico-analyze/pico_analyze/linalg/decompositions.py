"""Singular values and vectors, by a Gram matrix if that is accurate enough, else by the SVD.

The eigenvalues of A^T A are the squares of the singular values s_i of A, and take a third of the
time. Computing A^T A and decomposing it rounds each of them by about e = sqrt(max(m, n)) eps s_1^2
(eps of float64; rounding errors behave as if random: Higham & Mary 2019, "A new approach to
probabilistic rounding error analysis"; errors of up to 2 e were observed). So the relative error of
s_i is at most e / s_i^2, and A v_i / s_i and A v_j / s_j are orthogonal up to 2 e / (s_i s_j). Both
are negligible at s_1. Below sqrt(eps) s_1 the eigenvalues are noise, which an entropy, a sum or a
fitted tail would mistake for values.

The rule, which stands only here: a Gram matrix serves if e / s_k^2 is at most `GRAM_ERROR` for the
least value s_k, so that no value is less accurate than that. This reaches down to s_k = 4e-5 s_1
(64 rows) or 1e-4 s_1 (4,096). There rounding to fp32 has already left s_k uncertain by a relative
eps(fp32) s_1 / s_k > 1e-3, a thousand times as much. A matrix whose spectrum reaches below, and any
matrix that is stored or computed in float64 (a difference), is decomposed directly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

REAL = torch.float64
GRAM_ERROR = 1e-6


class Basis(NamedTuple):
    """The decomposition x = left @ diag(values) @ right of a centred sample of rank r."""

    left: torch.Tensor  # (rows, r), orthonormal columns
    values: torch.Tensor  # (r,), descending
    right: torch.Tensor  # (r, width), orthonormal rows


def singular_values(batch: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    """Compute the singular values of each matrix in a batch, (b, k) float64, descending.

    Args:
        batch: (b, m, n) float64; k = min(m, n).
        stored: the dtype in which the matrices were stored.
    """
    # LAPACK takes half the time on the tall one of A and A^T.
    _, rows, columns = batch.shape
    tall = batch if rows >= columns else batch.mT
    if stored == REAL:
        return torch.linalg.svdvals(tall)
    gram = tall.mT @ tall
    squares = torch.linalg.eigvalsh(gram).flip(1)
    values = squares.clamp(min=0).sqrt()
    least = _least_square(tall, squares[:, 0])
    is_doubtful = squares[:, -1] <= least  # also for zero matrices
    if is_doubtful.any():
        values[is_doubtful] = torch.linalg.svdvals(tall[is_doubtful])
    return values


def basis(x: torch.Tensor, gram: torch.Tensor, stored: torch.dtype, noise: float) -> Basis:
    """Compute the directions of a sample that stand out from rounding.

    Args:
        x: (rows, width) float64.
        gram: the smaller of x^T x and x x^T.
        stored: the dtype in which the sample was stored.
        noise: a bound of the 2-norm of rounding to it.
    """
    if stored != REAL:
        from_gram = _basis_from_gram(x, gram, noise)
        if from_gram is not None:
            return from_gram
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    largest = float(values[0])
    floor = _floor(x, largest, noise)
    rank = int((values > floor).sum())  # below the floor a direction may be rounding alone
    return Basis(left[:, :rank], values[:rank], right[:rank])


def _basis_from_gram(x: torch.Tensor, gram: torch.Tensor, noise: float) -> Basis | None:
    """Compute the basis from eigenvectors; None if a direction is neither accurate nor noise."""
    squares, vectors = torch.linalg.eigh(gram)
    largest = squares[-1]
    least = _least_square(x, largest)
    largest_value = float(largest.clamp(min=0).sqrt())
    floor = _floor(x, largest_value, noise)
    is_kept = squares > floor**2
    may_be_kept = squares > floor**2 - 2 * GRAM_ERROR * least
    # Directions below the floor are dropped, so that their accuracy does not matter.
    is_doubtful = (squares <= least) & may_be_kept
    if not is_kept.any() or is_doubtful.any():
        return None
    kept = vectors[:, is_kept]
    eigenvectors = kept.flip(1)  # descending
    # The eigenvectors are the directions of one side; x maps them to those of the other side.
    if len(gram) == x.shape[1]:
        left, values = _normalized_columns(x @ eigenvectors)
        return Basis(left, values, eigenvectors.T)
    right, values = _normalized_columns(x.T @ eigenvectors)
    return Basis(eigenvectors, values, right.T)


def _normalized_columns(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.linalg.vector_norm(matrix, dim=0)
    return matrix.div_(lengths), lengths


def left_vectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the left singular vectors (m, k) and singular values (k,) of (m, n) float64.

    Both are in descending order of the values.
    """
    rows, columns = matrix.shape
    # With more rows than columns the Gram matrix of the rows is singular and cannot serve.
    if rows <= columns:
        gram = matrix @ matrix.T
        squares, vectors = torch.linalg.eigh(gram)
        least = _least_square(matrix, squares[-1])
        if squares[0] > least:
            left = vectors.flip(1)
            values = torch.linalg.vector_norm(left.T @ matrix, dim=1)
            return left, values
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return left, values


def _least_square(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Return the s^2 down to which a Gram matrix serves.

    Args:
        x: a matrix of the shape that counts.
        largest: s_1^2 of each matrix.
    """
    return max(x.shape[-2:]) ** 0.5 * torch.finfo(REAL).eps / GRAM_ERROR * largest


def _floor(x: torch.Tensor, largest: float, noise: float) -> float:
    """Return the singular value up to which a direction may be rounding."""
    return max(noise, max(x.shape) * torch.finfo(REAL).eps * largest)
