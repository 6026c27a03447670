"""Comparisons of two states of a model: samples of the same rows, or matrices entry by entry.

Similarities are of the step (x) and the reference (y) and are 1 for a sample and itself; `relative_distance` is 0.
K = x x^T and L = y y^T are the Gram matrices of the centred samples, n the number of rows.
"""

from __future__ import annotations

from pico_analyze.linalg import Matrix, Sample, cross, difference, inner, norm
from pico_analyze.metrics.single import Outcome


def cka(x: Sample, y: Sample) -> Outcome:
    """Linear CKA ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F), columns centred; in [0, 1].

    None (zero) where a sample has no variance. Biased upwards when rows are few: independent samples do not give 0
    (see `cka_debiased`).
    Source: Kornblith et al. 2019, "Similarity of neural network representations revisited", eq. 5.
    """
    norm = (x.self_cross * y.self_cross) ** 0.5
    return Outcome(None, "zero") if norm == 0 else Outcome(cross(x, y) / norm)


def cka_debiased(x: Sample, y: Sample) -> Outcome:
    """CKA from the unbiased estimator of HSIC; at most 1, near 0 (of either sign) on independent samples.

    None where fewer than 4 rows are given (n_less_than_d), or where a sample's own estimate is not positive (zero), as
    for rows that are all equally far apart.
    Source: Song et al. 2012, "Feature selection via dependence maximization", eq. 5; Nguyen et al. 2021, eq. 3.
    """
    if x.rows < 4:
        return Outcome(None, "n_less_than_d")
    own_x, own_y = _unbiased_hsic(x, x), _unbiased_hsic(y, y)
    if own_x <= x.rounding or own_y <= y.rounding:
        return Outcome(None, "zero")
    return Outcome(_unbiased_hsic(x, y) / (own_x * own_y) ** 0.5)


def _unbiased_hsic(x: Sample, y: Sample) -> float:
    """n (n - 3) HSIC_1, with K~ and L~ the Gram matrices whose diagonals are set to 0:

    tr(K~ L~) + (1' K~ 1)(1' L~ 1) / ((n - 1)(n - 2)) - 2 / (n - 2) 1' K~ L~ 1.
    Columns are centred, so K 1 = 0 and K~ 1 = -diag(K): no n x n matrix is needed.
    """
    n = x.rows
    both = float(x.diagonal @ y.diagonal)
    trace = (x.self_cross if x is y else cross(x, y)) - both
    sums = float(x.diagonal.sum()) * float(y.diagonal.sum())
    return trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * both


def cosine(x: Matrix, y: Matrix) -> Outcome:
    """sum x_ij y_ij / (||x||_F ||y||_F), all entries as one vector; in [-1, 1], a similarity. None (zero) for a zero.

    Of gradients: whether two steps pull the same way. Columns are not centred.
    Source: Golub & Van Loan, Matrix Computations, sec. 2.2 (the angle of two vectors).
    """
    norms = norm(x) * norm(y)
    return Outcome(None, "zero") if norms == 0 else Outcome(min(max(inner(x, y) / norms, -1.0), 1.0))


def relative_distance(x: Matrix, y: Matrix) -> Outcome:
    """||x - y||_F / ||y||_F, y the reference; in [0, inf), a ratio. None (zero) for a reference of zero.

    Source: Golub & Van Loan, Matrix Computations, sec. 2.3 (relative error in a norm).
    """
    size = norm(y)
    return Outcome(None, "zero") if size == 0 else Outcome(norm(difference(x, y)) / size)
