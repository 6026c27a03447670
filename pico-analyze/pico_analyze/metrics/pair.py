"""Comparisons of two states of a model: samples of the same rows, or matrices entry by entry.

Similarities are of the step (x) and the reference (y) and are 1 for a sample and itself; `relative_distance` is 0.
K = x x^T and L = y y^T are the Gram matrices of the centred samples, n the number of rows. Columns of centred samples
span at most n - 1 dimensions: two subspaces that both fill these are equal whatever the samples are, so where one side
does, what compares subspaces is refused (n_less_than_d).
"""

from __future__ import annotations

import torch

from pico_analyze.decompositions import left_vectors
from pico_analyze.linalg import Matrix, difference, inner, norm
from pico_analyze.metrics.single import Outcome
from pico_analyze.sample import Sample, cross


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


def cka_rbf(x: Sample, y: Sample, bandwidth: float = 0.8) -> Outcome:
    """CKA tr(K H L H) / sqrt(tr(K H K H) tr(L H L H)) of K_ij = exp(-||x_i - x_j||^2 / (2 s^2)); in [0, 1].

    s is `bandwidth` times the median distance of the sample's rows, H the centring matrix. Biased upwards where rows
    are few. None (zero) where the median distance is 0.
    Source: Kornblith et al. 2019, "Similarity of neural network representations revisited", sec. 3.
    """
    if x.median_distance == 0 or y.median_distance == 0:
        return Outcome(None, "zero")
    k, gram = x.rbf(bandwidth), y.rbf(bandwidth)
    norms = torch.linalg.vector_norm(k) * torch.linalg.vector_norm(gram)
    return Outcome(float((k * gram).sum() / norms)) if norms > 0 else Outcome(None, "zero")


def svcca(x: Sample, y: Sample, variance: float = 0.99) -> Outcome:
    """Mean canonical correlation of the leading directions that hold `variance` of each centred sample; in [0, 1].

    None where a sample has no variance (zero), or where those of one fill all n - 1 dimensions (n_less_than_d).
    Source: Raghu et al. 2017, "SVCCA: singular vector canonical correlation analysis", sec. 2.1.
    """
    left, right = (_leading(sample, variance) for sample in (x, y))
    if refused := _refused(x.rows, left, right):
        return refused
    return Outcome(float(torch.linalg.svdvals(left.T @ right).clamp(max=1).mean()))


def pwcca(x: Sample, y: Sample) -> Outcome:
    """Canonical correlations r_i of x with y, weighted by how much of x each explains; in [0, 1].

    sum a_i r_i / sum a_i with a_i = sum_j |<h_i, x_j>|, h_i the canonical directions of x in the n rows, x_j its
    centred columns, i up to the smaller rank. The weights are those of x, the side being explained: pwcca(x, y) is not
    pwcca(y, x), and being sums over columns they change as x is turned, unless y spans all of x. A rank counts
    directions above rounding. None as for `svcca`, with all directions. Unless n exceeds the sum of the ranks some
    correlations are 1 by chance; the weights of correlations that are equal are not unique.
    Source: Morcos et al. 2018, "Insights on representational similarity in neural networks with canonical correlation",
    sec. 3.1.
    """
    if refused := _refused(x.rows, x.basis.left, y.basis.left):
        return refused
    turn, correlations = left_vectors(x.basis.left.T @ y.basis.left)
    weights = (turn.T @ (x.basis.values[:, None] * x.basis.right)).abs().sum(dim=1)
    return Outcome(float(weights @ correlations.clamp(max=1) / weights.sum()))


def procrustes(x: Sample, y: Sample) -> Outcome:
    """||x^T y||_* / (||x||_F ||y||_F) of centred samples, a similarity; in [0, 1].

    The cosine after the best orthogonal map: the normalised Procrustes distance is sqrt(2 - 2 times this). Biased
    upwards where rows are few. None (zero) where a sample has no variance.
    Source: Williams et al. 2021, "Generalized shape metrics on neural representations", sec. 2; Golub & Van Loan,
    Matrix Computations, sec. 6.4.1.
    """
    if _dimensions(x, y) == 0:
        return Outcome(None, "zero")
    core = (x.basis.left * x.basis.values).T @ (y.basis.left * y.basis.values)
    norms = torch.linalg.vector_norm(x.basis.values) * torch.linalg.vector_norm(y.basis.values)
    return Outcome(min(float(torch.linalg.svdvals(core).sum() / norms), 1.0))


def subspace_overlap(x: Sample, y: Sample, k: int = 10) -> Outcome:
    """Mean squared cosine of the principal angles between the leading `k` left singular subspaces; in [0, 1].

    ||U^T V||_F^2 / k, U and V the directions in the n rows in which centred x and y vary most; about k / (n - 1) by
    chance. Where a sample has fewer, k is the smaller rank. None as for `svcca`.
    Source: Bjorck & Golub 1973, "Numerical methods for computing angles between linear subspaces"; Gur-Ari et al. 2018,
    "Gradient descent happens in a tiny subspace".
    """
    kept = min(k, _dimensions(x, y))
    left, right = x.basis.left[:, :kept], y.basis.left[:, :kept]
    return _refused(x.rows, left, right) or Outcome(float((left.T @ right).square().sum()) / kept)


def mutual_knn(x: Sample, y: Sample, k: int = 10) -> Outcome:
    """Share of the `k` nearest rows, by Euclidean distance, that are the same in both, over all rows; in [0, 1].

    About k / (n - 1) by chance. None where a sample has no variance (zero), or where all other rows are neighbours,
    n - 1 <= k (n_less_than_d).
    Source: Huh et al. 2024, "The platonic representation hypothesis", sec. 2 (there by inner products).
    """
    if x.rows - 1 <= k:
        return Outcome(None, "n_less_than_d")
    if x.self_cross == 0 or y.self_cross == 0:
        return Outcome(None, "zero")
    return Outcome(float((x.neighbours(k) & y.neighbours(k)).sum()) / (k * x.rows))


def _leading(sample: Sample, variance: float) -> torch.Tensor:
    """(n, d): the fewest leading left singular vectors that hold this share of the squared norm."""
    held = sample.basis.values.square().cumsum(0)
    return sample.basis.left[:, : int((held < variance * held[-1:]).sum()) + 1]


def _dimensions(x: Sample, y: Sample) -> int:
    return min(len(x.basis.values), len(y.basis.values))


def _refused(rows: int, left: torch.Tensor, right: torch.Tensor) -> Outcome | None:
    """Why two subspaces of the n rows, given by orthonormal columns, cannot be compared."""
    if min(left.shape[1], right.shape[1]) == 0:
        return Outcome(None, "zero")
    return Outcome(None, "n_less_than_d") if max(left.shape[1], right.shape[1]) >= rows - 1 else None


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
