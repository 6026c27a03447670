"""The unbiased estimator of HSIC, for rows that are independent and for rows that come in dependent sequences.

Shapes: n rows, B sequences of Q rows each (n = B Q), k the width of a sample's core.
"""

from __future__ import annotations

import torch

from pico_analyze.sample import Sample, cross, inner_of_products

FEWEST_SEQUENCES = 4
"""The estimator's fourth-order term is over four different sequences."""


def unbiased_hsic(x: Sample, y: Sample) -> float:
    """n (n - Q) times the unbiased HSIC of two linear kernels; its mean is 0 for independent samples.

    HSIC is mean(K_ij L_ij) + mean(K_ij L_qr) - 2 mean(K_ij L_ir), where i, j, q, r are rows of different sequences:
    rows of one sequence depend on each other, so that their products do not average out. With one row a sequence this
    is eq. 5 of Song et al. 2012, "Feature selection via dependence maximization".

    Columns are centred, so that a row's sum of K over other sequences is that over its own, negated. No n x n matrix is
    formed.
    """
    n, q = x.rows, x.positions
    s, t = _sums(x), _sums(y)  # (B, k)
    own_x, own_y = _with_own_sequence(x, s), _with_own_sequence(y, t)  # (n,)
    sizes_x, sizes_y = s.square().sum(dim=1), t.square().sum(dim=1)  # (B,)
    rows, mixed, sums = _inners(x, y, s, t)
    two = rows - _within_sequences(x, y)
    three = 2 * float(own_x @ own_y) - mixed
    four = float(sizes_x.sum() * sizes_y.sum()) - 6 * float(sizes_x @ sizes_y) + 2 * sums
    return two - 2 * three / (n - 2 * q) + four / ((n - 2 * q) * (n - 3 * q))


def _sums(x: Sample) -> torch.Tensor:
    """(B, k): the sum of the rows of each sequence."""
    return x.core if x.positions == 1 else _by_sequence(x).sum(dim=1)


def _by_sequence(x: Sample) -> torch.Tensor:
    return x.core.unflatten(0, (x.sequences, x.positions))  # (B, Q, k)


def _with_own_sequence(x: Sample, sums: torch.Tensor) -> torch.Tensor:
    """(n,): the inner product of each row with the sum of its sequence."""
    return x.diagonal if x.positions == 1 else (x.core * sums.repeat_interleave(x.positions, 0)).sum(dim=1)


def _inners(x: Sample, y: Sample, s: torch.Tensor, t: torch.Tensor) -> tuple[float, float, float]:
    """<X^T Y, X^T Y>, <X^T Y, S^T T> and <S^T T, S^T T> of the rows and of the sums."""
    rows = x.self_cross if x is y else cross(x, y)
    if x.positions == 1:
        return rows, rows, rows
    return rows, inner_of_products(x.core, y.core, s, t), inner_of_products(s, t, s, t)


def _within_sequences(x: Sample, y: Sample) -> float:
    """The sum of K_ij L_ij over rows i, j of one sequence."""
    if x.positions == 1:
        return float(x.diagonal @ y.diagonal)
    a, b = _by_sequence(x), _by_sequence(y)
    return float(((a @ a.mT) * (b @ b.mT)).sum())
