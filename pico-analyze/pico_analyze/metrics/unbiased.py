"""The unbiased estimator of HSIC, for independent rows and for rows in dependent sequences.

Shapes: n rows, B sequences of Q rows each (n = B Q). K = x x^T and L = y y^T are the Gram matrices.
"""

from __future__ import annotations

import torch

from pico_analyze.linalg.sample import Sample, cross

FEWEST_SEQUENCES = 4
"""The estimator's fourth-order term is over four different sequences."""


def unbiased_hsic(x: Sample, y: Sample) -> float:
    """Compute n (n - Q) times the unbiased HSIC of two linear kernels.

    Its mean is 0 for independent samples. HSIC is mean(K_ij L_ij) + mean(K_ij L_qr) - 2 mean(K_ij
    L_ir), where i, j, q, r are rows of different sequences: rows of one sequence depend on each
    other, so that their products do not average out. With one row a sequence this is eq. 5 of Song
    et al. 2012, "Feature selection via dependence maximization".
    """
    n, q = x.rows, x.positions
    all_rows = x.self_cross if x is y else cross(x, y)  # sum of K_ij L_ij over all i, j
    rows_by_sequences, sequences_by_sequences = _sums_over_sequences(x, y, all_rows)
    # Columns are centred, so that each row of K sums to 0: its sum over other sequences is that
    # over its own sequence, negated.
    own_x, own_y = _sums_of_own_sequence(x), _sums_of_own_sequence(y)  # (n,)
    square_x = own_x.unflatten(0, (-1, q)).sum(dim=1)  # (B,): |sum of a sequence's rows|^2
    square_y = own_y.unflatten(0, (-1, q)).sum(dim=1)
    second = all_rows - _sum_within_sequences(x, y)
    third = 2 * float(own_x @ own_y) - rows_by_sequences
    fourth = float(square_x.sum() * square_y.sum()) - 6 * float(square_x @ square_y)
    fourth += 2 * sequences_by_sequences
    return second - 2 * third / (n - 2 * q) + fourth / ((n - 2 * q) * (n - 3 * q))


def own_hsic(x: Sample) -> float:
    """Compute `unbiased_hsic` of a sample and itself, once."""
    return x.once("hsic", lambda sample: unbiased_hsic(sample, sample))


def _sums_of_own_sequence(x: Sample) -> torch.Tensor:
    """Sum K_ij over the rows j of the sequence of row i, for each row i: (n,)."""
    return x.diagonal if x.positions == 1 else x.within_sequences.sum(dim=2).flatten()


def _sum_within_sequences(x: Sample, y: Sample) -> float:
    """Sum K_ij L_ij over all pairs of rows i, j of one sequence."""
    if x.positions == 1:
        return float(x.diagonal @ y.diagonal)
    return float((x.within_sequences * y.within_sequences).sum())


def _sums_over_sequences(x: Sample, y: Sample, all_rows: float) -> tuple[float, float]:
    """Sum K_ib L_ib over rows i and sequences b, and K_ab L_ab over pairs of sequences.

    An index of a sequence stands for the sum over its rows. With one row a sequence both sums are
    `all_rows`.
    """
    if x.positions == 1:
        return all_rows, all_rows
    row_by_sequence = x.with_sequences * y.with_sequences  # (n, B)
    between = _between_sequences(x) * _between_sequences(y)  # (B, B)
    return float(row_by_sequence.sum()), float(between.sum())


def _between_sequences(x: Sample) -> torch.Tensor:
    return x.with_sequences.unflatten(0, (x.sequences, x.positions)).sum(dim=1)
