"""Singular values and vectors: through a Gram matrix where that is accurate enough, else through
the SVD.

The eigenvalues of A^T A are the squares of the singular values s_i of A, and take a third of the
time. Forming A^T A and decomposing it rounds each of them by about e = sqrt(max(m, n)) eps s_1^2
(eps of float64; terms round as if at random: Higham & Mary 2019, "A new approach to probabilistic
rounding error analysis"; up to 2 e is seen). So s_i is off by e / s_i^2 of itself at most, and A
v_i / s_i and A v_j / s_j are orthogonal but for 2 e / (s_i s_j). That is nothing at s_1, and
everything below sqrt(eps) s_1, where noise comes out that an entropy, a sum or a fitted tail would
take for values.

The rule, which is here and nowhere else: a Gram matrix serves where e / s_k^2 is at most
`GRAM_ERROR` for the least value s_k, which is down to s_k = 4e-5 s_1 (64 rows) or 1e-4 s_1 (4,096),
so that no value is less accurate than that. By then rounding to fp32 has left s_k uncertain by
eps(fp32) s_1 / s_k > 1e-3 of itself, a thousand times as much. A spectrum that reaches below, and
any matrix that is stored in float64 or computed in it (a difference), is decomposed as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

REAL = torch.float64
GRAM_ERROR = 1e-6


class Basis(NamedTuple):
    """x = left @ diag(values) @ right for a centred sample x of rank r, values descending."""

    left: torch.Tensor  # (rows, r), orthonormal columns
    values: torch.Tensor  # (r,)
    right: torch.Tensor  # (r, width), orthonormal rows


def singular_values(batch: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    """(b, k) float64, descending, of (b, m, n) float64 matrices that were stored as `stored`; k =
    min(m, n)."""
    tall = (
        batch if batch.shape[1] >= batch.shape[2] else batch.mT
    )  # LAPACK takes half the time on the tall one
    if stored == REAL:
        return torch.linalg.svdvals(tall)
    squares = torch.linalg.eigvalsh(tall.mT @ tall).flip(1)
    values = squares.clamp(min=0).sqrt()
    doubtful = squares[:, -1] <= _least_square(tall, squares[:, 0])  # of a matrix of zeros as well
    if doubtful.any():
        values[doubtful] = torch.linalg.svdvals(tall[doubtful])
    return values


def basis(x: torch.Tensor, gram: torch.Tensor, stored: torch.dtype, noise: float) -> Basis:
    """Directions of (rows, width) float64 above `noise` and above what the decomposition can make
    of nothing.

    `gram` is the smaller of x^T x and x x^T.
    """
    found = None if stored == REAL else _basis_from_gram(x, gram, noise)
    if found is not None:
        return found
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    rank = int((values > _floor(x, float(values[0]), noise)).sum())
    return Basis(left[:, :rank], values[:rank], right[:rank])


def _basis_from_gram(x: torch.Tensor, gram: torch.Tensor, noise: float) -> Basis | None:
    """None where a direction is neither accurate nor certainly noise."""
    squares, vectors = torch.linalg.eigh(gram)
    least = _least_square(x, squares[-1])
    floor = _floor(x, float(squares[-1].clamp(min=0).sqrt()), noise)
    kept = squares > floor**2
    doubtful = (squares <= least) & (squares > floor**2 - 2 * GRAM_ERROR * least)
    if not kept.any() or doubtful.any():
        return None
    near = vectors[:, kept].flip(1)
    far = (x if len(gram) == x.shape[1] else x.T) @ near
    values = torch.linalg.vector_norm(far, dim=0)
    far /= values
    return Basis(far, values, near.T) if len(gram) == x.shape[1] else Basis(near, values, far.T)


def left_vectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(m, k) and (k,) float64: left singular vectors of (m, n) float64 and their singular values,
    descending."""
    if matrix.shape[0] <= matrix.shape[1]:
        squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
        if squares[0] > _least_square(matrix, squares[-1]):
            left = vectors.flip(1)
            return left, torch.linalg.vector_norm(left.T @ matrix, dim=1)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return left, values


def _least_square(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """s^2 above which a Gram matrix serves, for matrices of the shape of x whose s_1^2 are
    `largest`."""
    return max(x.shape[-2:]) ** 0.5 * torch.finfo(REAL).eps / GRAM_ERROR * largest


def _floor(x: torch.Tensor, largest: float, noise: float) -> float:
    return max(noise, max(x.shape) * torch.finfo(REAL).eps * largest)
