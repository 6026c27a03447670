"""Comparisons of two states of a model: samples of the same rows, or matrices entry by entry.

Similarities are of the step (x) and the reference (y) and are 1 for a sample and itself;
`relative_distance` is 0. K = x x^T and L = y y^T are the Gram matrices of the centred samples, n
the number of rows. Columns of centred samples span at most n - 1 dimensions, n the number of
distinct rows: two subspaces that both fill these are equal whatever the samples are, so where one
side does, what compares subspaces is refused (n_less_than_d). A sample that varies, but by no more
than rounding to its stored dtype can have made of nothing, has no direction (within_rounding).
"""

from __future__ import annotations

import torch

from pico_analyze.linalg.decompositions import left_vectors
from pico_analyze.linalg.matrix import Matrix, difference, inner, norm, norm_ratio, normalized
from pico_analyze.linalg.sample import Sample, cross, fills_all_rows
from pico_analyze.metrics.single import Outcome, bounded
from pico_analyze.metrics.unbiased import FEWEST_SEQUENCES, own_hsic, unbiased_hsic

_EQUAL = 1e-12
"""Correlations that differ by no more are equal: they are computed to about 1e-15 times the root of
their number."""
_NEGLIGIBLE = 1e-6
"""Where all correlations lie within this, their weighted mean does, whatever the weights are."""


def cka(x: Sample, y: Sample) -> Outcome:
    """Linear CKA ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F), columns centred; in [0, 1].

    None (zero) where a sample has no variance. Biased upwards when rows are few: independent
    samples do not give 0 (see `cka_debiased`). Source: Kornblith et al. 2019, "Similarity of neural
    network representations revisited", eq. 5.
    """
    norm = (x.self_cross * y.self_cross) ** 0.5
    return Outcome(None, "zero") if norm == 0 else bounded(cross(x, y) / norm, 0, 1)


def cka_debiased(x: Sample, y: Sample) -> Outcome:
    """CKA from the unbiased estimator of HSIC; in [-1, 1], near 0 (of either sign) on independent
    samples.

    Pairs of rows count only if they are of different sequences. None where there are fewer than 4
    sequences (n_less_than_d), or where a sample's own estimate is not positive (zero), as for rows
    all equally far apart. Source: Song et al. 2012, "Feature selection via dependence
    maximization", eq. 5; Nguyen et al. 2021, eq. 3.
    """
    if x.sequences < FEWEST_SEQUENCES:
        return Outcome(None, "n_less_than_d")
    own_x, own_y = own_hsic(x), own_hsic(y)
    if own_x <= x.rounding or own_y <= y.rounding:
        return Outcome(None, "zero")
    return bounded(unbiased_hsic(x, y) / (own_x * own_y) ** 0.5, -1, 1)


def cka_rbf(x: Sample, y: Sample, bandwidth: float = 0.8) -> Outcome:
    """CKA tr(K H L H) / sqrt(tr(K H K H) tr(L H L H)) of K_ij = exp(-||x_i - x_j||^2 / (2 s^2)); in
    [0, 1].

    s is `bandwidth` times the median distance of the sample's rows, H the centring matrix. Biased
    upwards where rows are few. None (zero) where the median distance is 0. Source: Kornblith et al.
    2019, "Similarity of neural network representations revisited", sec. 3.
    """
    if x.median_distance == 0 or y.median_distance == 0:
        return Outcome(None, "zero")
    k, gram = x.rbf(bandwidth), y.rbf(bandwidth)
    norms = torch.linalg.vector_norm(k) * torch.linalg.vector_norm(gram)
    return bounded(float((k * gram).sum() / norms), 0, 1) if norms > 0 else Outcome(None, "zero")


def svcca(x: Sample, y: Sample, variance: float = 0.99) -> Outcome:
    """Mean canonical correlation of the leading directions that hold `variance` of each centred
    sample; in [0, 1].

    None where a sample has no variance (zero) or no direction above rounding (within_rounding),
    where the directions of one fill all n - 1 dimensions (n_less_than_d), or where two directions
    of one size lie at the limit (not_unique). Source: Raghu et al. 2017, "SVCCA: singular vector
    canonical correlation analysis", sec. 2.1.
    """
    kept = [_holding(sample, variance) for sample in (x, y)]
    if refused := _refused(x, y, *kept):
        return refused
    left, right = (sample.basis.left[:, :k] for sample, k in zip((x, y), kept, strict=True))
    return bounded(float(torch.linalg.svdvals(left.T @ right).clamp(max=1).mean()), 0, 1)


def pwcca(x: Sample, y: Sample) -> Outcome:
    """Canonical correlations r_i of x with y, weighted by how much of x each explains; in [0, 1].

    sum a_i r_i / sum a_i with a_i = sum_j |<h_i, x_j>|, h_i the canonical directions of x in the n
    rows, x_j its centred columns, i up to the smaller rank. The weights are those of x, the side
    being explained: pwcca(x, y) is not pwcca(y, x), and being sums over columns they change as x is
    turned, unless y spans all of x. A rank counts directions above rounding. None as for `svcca`,
    with all directions, and where some correlations are equal and others are not, so that the
    weights are not unique (not_unique): unless n exceeds the sum of the ranks, some correlations
    are 1 by necessity. Source: Morcos et al. 2018, "Insights on representational similarity in
    neural networks with canonical correlation", sec. 3.1.
    """
    if refused := _refused(x, y, len(x.basis.values), len(y.basis.values)):
        return refused
    directions, loadings = x.frame
    turn, correlations = left_vectors(directions.T @ y.frame[0])
    if _some_repeat(correlations, max(x.angle_error, y.angle_error) ** 2):
        return Outcome(None, "not_unique")
    weights = (turn.T @ loadings).abs().sum(dim=1)
    return bounded(float(weights @ correlations.clamp(max=1) / weights.sum()), 0, 1)


def _some_repeat(correlations: torch.Tensor, error: float) -> bool:
    """Whether correlations (descending) repeat up to rounding, while others differ enough for
    weights to matter."""
    gaps = correlations[:-1] - correlations[1:]
    apart = float(correlations.max() - correlations.min()) > _NEGLIGIBLE
    return apart and bool((gaps <= max(_EQUAL, error)).any())


def procrustes(x: Sample, y: Sample) -> Outcome:
    """||x^T y||_* / (||x||_F ||y||_F) of centred samples, a similarity; in [0, 1].

    The cosine after the best orthogonal map: the normalised Procrustes distance is sqrt(2 - 2 times
    this). Biased upwards where rows are few. None where a sample has no variance (zero), or none
    above rounding (within_rounding). Source: Williams et al. 2021, "Generalized shape metrics on
    neural representations", sec. 2; Golub & Van Loan, Matrix Computations, sec. 6.4.1.
    """
    if without := _without_direction(x, y):
        return without
    core = (x.basis.left * x.basis.values).T @ (y.basis.left * y.basis.values)
    norms = torch.linalg.vector_norm(x.basis.values) * torch.linalg.vector_norm(y.basis.values)
    return bounded(float(torch.linalg.svdvals(core).sum() / norms), 0, 1)


def subspace_overlap(x: Sample, y: Sample, k: int = 10) -> Outcome:
    """Mean squared cosine of the principal angles between the leading `k` left singular subspaces;
    in [0, 1].

    ||U^T V||_F^2 / k, U and V the directions in the n rows in which centred x and y vary most; about k / (n - 1) by
    chance. Where a sample has fewer, k is the smaller rank. None as for `svcca`.
    Source: Bjorck & Golub 1973, "Numerical methods for computing angles between linear subspaces"; Gur-Ari et al. 2018,
    "Gradient descent happens in a tiny subspace".
    """
    kept = min(k, len(x.basis.values), len(y.basis.values))
    if refused := _refused(x, y, kept, kept):
        return refused
    left, right = x.basis.left[:, :kept], y.basis.left[:, :kept]
    return bounded(float((left.T @ right).square().sum()) / kept, 0, 1)


def mutual_knn(x: Sample, y: Sample, k: int = 10) -> Outcome:
    """Share of the `k` nearest rows, by Euclidean distance, that are the same in both, over all
    rows; in [0, 1].

    Rows that tie for the last places, such as those of equal tokens, count by their expected
    overlap over all orders of those that tie, drawn for either sample by itself: a sample with ties
    is not wholly like itself. About k / (n - 1) by chance. None where a sample has no variance
    (zero), or where all other rows are neighbours, n - 1 <= k (n_less_than_d). Source: Huh et al.
    2024, "The platonic representation hypothesis", sec. 2 (there by inner products).
    """
    if x.rows - 1 <= k:
        return Outcome(None, "n_less_than_d")
    if x.self_cross == 0 or y.self_cross == 0:
        return Outcome(None, "zero")
    return bounded(float((x.neighbours(k) * y.neighbours(k)).sum()) / (k * x.rows), 0, 1)


def _holding(sample: Sample, variance: float) -> int:
    """The fewest leading directions that hold this share of the squared norm; 0 where there is no
    direction."""
    held = sample.basis.values.square().cumsum(0)
    return min(int((held < variance * held[-1:]).sum()) + 1, len(held))


def _refused(x: Sample, y: Sample, of_x: int, of_y: int) -> Outcome | None:
    """Why the subspaces of so many leading directions of two samples cannot be compared."""
    if without := _without_direction(x, y):
        return without
    if fills_all_rows(max(of_x, of_y), x, y):
        return Outcome(None, "n_less_than_d")
    unique = x.is_unique(of_x) and y.is_unique(of_y)
    return None if unique else Outcome(None, "not_unique")


def _without_direction(x: Sample, y: Sample) -> Outcome | None:
    if x.self_cross == 0 or y.self_cross == 0:
        return Outcome(None, "zero")
    fewest = min(len(x.basis.values), len(y.basis.values))
    return None if fewest else Outcome(None, "within_rounding")


def cosine(x: Matrix, y: Matrix) -> Outcome:
    """sum x_ij y_ij / (||x||_F ||y||_F), all entries as one vector; in [-1, 1], a similarity. None
    (zero) for a zero.

    Of gradients: whether two steps pull the same way. Columns are not centred.
    Source: Golub & Van Loan, Matrix Computations, sec. 2.2 (the angle of two vectors).
    """
    x, y = normalized(x)[0], normalized(y)[0]
    norms = norm(x) * norm(y)
    return Outcome(None, "zero") if norms == 0 else bounded(inner(x, y) / norms, -1, 1)


def relative_distance(x: Matrix, y: Matrix) -> Outcome:
    """||x - y||_F / ||y||_F, y the reference; in [0, inf), a ratio. None (zero) for a reference of zero.

    Source: Golub & Van Loan, Matrix Computations, sec. 2.3 (relative error in a norm).
    """
    ratio = norm_ratio(difference(x, y), y)
    return Outcome(None, "zero") if ratio is None else Outcome(ratio)
