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
    all_rows = cross(x, y)  # sum of K_ij L_ij over all i, j
    rows_by_sequences, sequences_by_sequences = _sums_over_sequences(x, y, all_rows)
    # Columns are centred, so that each row of K sums to 0: its sum over other sequences is that
    # over its own sequence, negated.
    own_x = _sums_of_own_sequence(x)  # (n,)
    own_y = _sums_of_own_sequence(y)
    square_x = _sum_by_sequence(x, own_x)  # (B,): |sum of its rows|^2
    square_y = _sum_by_sequence(y, own_y)
    second = all_rows - _sum_within_sequences(x, y)
    own = float(own_x @ own_y)
    third = 2 * own - rows_by_sequences
    total_x, total_y = square_x.sum(), square_y.sum()
    product = float(total_x * total_y)
    diagonal = float(square_x @ square_y)
    fourth = product - 6 * diagonal + 2 * sequences_by_sequences
    # The numbers of rows outside two and outside three sequences
    outside_two = x.rows - 2 * x.positions
    outside_three = x.rows - 3 * x.positions
    return second - 2 * third / outside_two + fourth / (outside_two * outside_three)


def own_hsic(x: Sample) -> float:
    """Compute `unbiased_hsic` of a sample and itself, once."""
    return x.once("hsic", lambda sample: unbiased_hsic(sample, sample))


def _sums_of_own_sequence(x: Sample) -> torch.Tensor:
    """Sum K_ij over the rows j of the sequence of row i, for each row i: (n,)."""
    return x.diagonal if x.positions == 1 else x.within_sequences.sum(dim=2).flatten()


def _sum_within_sequences(x: Sample, y: Sample) -> float:
    """Sum K_ij L_ij over all pairs of rows i, j of one sequence."""
    # With one row a sequence the sums need no matrix beside those that CKA uses.
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
    """Sum K over the rows of each pair of sequences: (B, B)."""
    return _sum_by_sequence(x, x.with_sequences)


def _sum_by_sequence(x: Sample, of_rows: torch.Tensor) -> torch.Tensor:
    """Sum (n, ...) over the rows of each sequence: (B, ...)."""
    return of_rows.unflatten(0, (x.sequences, x.positions)).sum(dim=1)
