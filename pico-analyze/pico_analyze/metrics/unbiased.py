"""The unbiased estimator of HSIC, for rows that are independent and for rows that come in dependent
sequences.

Shapes: n rows, B sequences of Q rows each (n = B Q). K = x x^T and L = y y^T are the Gram matrices.
"""

from __future__ import annotations

import torch

from pico_analyze.linalg.sample import Sample, cross

FEWEST_SEQUENCES = 4
"""The estimator's fourth-order term is over four different sequences."""


def unbiased_hsic(x: Sample, y: Sample) -> float:
    """n (n - Q) times the unbiased HSIC of two linear kernels; its mean is 0 for independent
    samples.

    HSIC is mean(K_ij L_ij) + mean(K_ij L_qr) - 2 mean(K_ij L_ir), where i, j, q, r are rows of
    different sequences: rows of one sequence depend on each other, so that their products do not
    average out. With one row a sequence this is eq. 5 of Song et al. 2012, "Feature selection via
    dependence maximization".

    Columns are centred, so that a row's sum of K over other sequences is that over its own,
    negated.
    """
    n, q = x.rows, x.positions
    rows = x.self_cross if x is y else cross(x, y)  # sum of K_ij L_ij over all i, j
    own_x, own_y = _with_own_sequence(x), _with_own_sequence(y)  # (n,)
    sizes_x, sizes_y = (
        own.unflatten(0, (-1, q)).sum(dim=1) for own in (own_x, own_y)
    )  # (B,): |sum of a sequence|^2
    mixed, sums = _over_sequences(x, y, rows)
    two = rows - _within_sequences(x, y)
    three = 2 * float(own_x @ own_y) - mixed
    four = float(sizes_x.sum() * sizes_y.sum()) - 6 * float(sizes_x @ sizes_y) + 2 * sums
    return two - 2 * three / (n - 2 * q) + four / ((n - 2 * q) * (n - 3 * q))


def own_hsic(x: Sample) -> float:
    """`unbiased_hsic` of a sample and itself, computed once."""
    return x.once("hsic", lambda sample: unbiased_hsic(sample, sample))


def _with_own_sequence(x: Sample) -> torch.Tensor:
    """(n,): the sum of K_ij over the rows j of the sequence of row i."""
    return x.diagonal if x.positions == 1 else x.within_sequences.sum(dim=2).flatten()


def _within_sequences(x: Sample, y: Sample) -> float:
    """The sum of K_ij L_ij over rows i, j of one sequence."""
    if x.positions == 1:
        return float(x.diagonal @ y.diagonal)
    return float((x.within_sequences * y.within_sequences).sum())


def _over_sequences(x: Sample, y: Sample, rows: float) -> tuple[float, float]:
    """The sum over all rows i and sequences b of K_ib L_ib, K_ib the sum of K_ij over the rows j of
    b; and the sum of K_ab L_ab over all pairs of sequences. With one row a sequence both are
    `rows`.
    """
    if x.positions == 1:
        return rows, rows
    of_x, of_y = x.with_sequences, y.with_sequences  # (n, B)
    between_x, between_y = (
        of.unflatten(0, (x.sequences, x.positions)).sum(dim=1) for of in (of_x, of_y)
    )
    return float((of_x * of_y).sum()), float((between_x * between_y).sum())
