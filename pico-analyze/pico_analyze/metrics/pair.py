"""Comparisons of two states of a model: samples of the same rows, or matrices entry by entry.

x is the step and y its reference. Similarities are 1 for a sample and itself; `relative_distance`
is 0. K = x x^T and L = y y^T are the Gram matrices of the centred samples, n the number of rows.

Two outcomes without a value are common to all comparisons of subspaces:

- n_less_than_d: n distinct rows, centred, span at most n - 1 dimensions. Two subspaces that both
  fill these are equal whatever the samples are, so a comparison is refused if one of them does.
- within_rounding: a sample whose variation is no larger than rounding to its stored dtype can
  produce has no direction.
"""

from __future__ import annotations

import torch

from pico_analyze.linalg.decompositions import left_vectors
from pico_analyze.linalg.matrix import Matrix, difference, inner, norm, norm_ratio, normalized
from pico_analyze.linalg.sample import Sample, cross, fills_all_rows
from pico_analyze.metrics.single import Outcome, bounded
from pico_analyze.metrics.unbiased import FEWEST_SEQUENCES, own_hsic, unbiased_hsic

_EQUAL = 1e-12
"""Correlations that differ by no more are equal: rounding is about 1e-15 sqrt(their number)."""
_NEGLIGIBLE = 1e-6
"""If all correlations lie this close together, so does any weighted mean of them."""


def cka(x: Sample, y: Sample) -> Outcome:
    """Compute linear CKA, ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) with columns centred.

    In [0, 1], a similarity. It is biased upwards if rows are few: independent samples do not give 0
    (see `cka_debiased`). None (zero) if a sample has no variance. Source: Kornblith et al. 2019,
    "Similarity of neural network representations revisited", eq. 5.
    """
    norms = (x.self_cross * y.self_cross) ** 0.5
    return Outcome(None, "zero") if norms == 0 else bounded(cross(x, y) / norms, 0, 1)


def cka_debiased(x: Sample, y: Sample) -> Outcome:
    """Compute CKA from the unbiased estimator of HSIC.

    In [-1, 1], a similarity: near 0, of either sign, for independent samples. Pairs of rows count
    only if they belong to different sequences. None (n_less_than_d) if there are fewer than 4
    sequences, and None (zero) if a sample's own estimate is not positive, as it is if all rows are
    equally far apart. Source: Song et al. 2012, "Feature selection via dependence maximization",
    eq. 5; Nguyen et al. 2021, eq. 3.
    """
    if x.sequences < FEWEST_SEQUENCES:
        return Outcome(None, "n_less_than_d")
    own_x, own_y = own_hsic(x), own_hsic(y)
    # The sign of an estimate within rounding is unknown, and its root would amplify the noise.
    if own_x <= x.rounding or own_y <= y.rounding:
        return Outcome(None, "zero")
    return bounded(unbiased_hsic(x, y) / (own_x * own_y) ** 0.5, -1, 1)


def cka_rbf(x: Sample, y: Sample, bandwidth: float = 0.8) -> Outcome:
    """Compute CKA, tr(KHLH) / sqrt(tr(KHKH) tr(LHLH)), with Gaussian kernels.

    In [0, 1], a similarity. K_ij = exp(-||x_i - x_j||^2 / (2 s^2)), where s is `bandwidth` times
    the median distance of the sample's rows; H is the centring matrix. It is biased upwards if rows
    are few. None (zero) if the median distance is 0. Source: Kornblith et al. 2019, "Similarity of
    neural network representations revisited", sec. 3.
    """
    if x.median_distance == 0 or y.median_distance == 0:
        return Outcome(None, "zero")
    k, gram = x.rbf(bandwidth), y.rbf(bandwidth)
    norms = torch.linalg.vector_norm(k) * torch.linalg.vector_norm(gram)
    similarity = (k * gram).sum() / norms
    return bounded(float(similarity), 0, 1) if norms > 0 else Outcome(None, "zero")


def svcca(x: Sample, y: Sample, variance: float = 0.99) -> Outcome:
    """Compute the mean canonical correlation of the directions that hold `variance` of each sample.

    In [0, 1], a similarity. The directions are the leading ones of each centred sample. None if a
    sample has no variance (zero) or no direction above rounding (within_rounding), if the
    directions of one fill all n - 1 dimensions (n_less_than_d), or if two equally large directions
    lie at the limit (not_unique). Source: Raghu et al. 2017, "SVCCA: singular vector canonical
    correlation analysis", sec. 2.1.
    """
    x_count, y_count = _directions_holding(variance, x), _directions_holding(variance, y)
    if refused := _refused(x, y, x_count, y_count):
        return refused
    x_directions, y_directions = x.basis.left[:, :x_count], y.basis.left[:, :y_count]
    # Rounding can lift a correlation above 1.
    correlations = torch.linalg.svdvals(x_directions.T @ y_directions).clamp(max=1)
    return bounded(float(correlations.mean()), 0, 1)


def pwcca(x: Sample, y: Sample) -> Outcome:
    """Compute the mean of the canonical correlations of x with y, weighted by their share of x.

    In [0, 1], a similarity: sum a_i r_i / sum a_i over the correlations r_i, i up to the smaller
    rank, with a_i = sum_j |<h_i, x_j>| for the canonical directions h_i of x in the n rows and its
    centred columns x_j. A rank counts directions above rounding. The weights are those of x, the
    side to be explained, so pwcca(x, y) is not pwcca(y, x). They are sums over columns, so they
    change if x is rotated, unless y spans all of x.

    None as for `svcca`, with all directions. None (not_unique) also if some correlations are equal
    and others are not, so that the weights are not unique: unless n exceeds the sum of the ranks,
    some correlations must be 1. Source: Morcos et al. 2018, "Insights on representational
    similarity in neural networks with canonical correlation", sec. 3.1.
    """
    x_rank = len(x.basis.values)
    y_rank = len(y.basis.values)
    if refused := _refused(x, y, x_rank, y_rank):
        return refused
    x_directions, x_loadings = x.frame
    y_directions, _ = y.frame
    rotation, correlations = left_vectors(x_directions.T @ y_directions)
    angle_error = max(x.angle_error, y.angle_error)
    if _some_repeat(correlations, angle_error**2):
        return Outcome(None, "not_unique")
    canonical_loadings = rotation.T @ x_loadings
    weights = canonical_loadings.abs().sum(dim=1)
    weighted_sum = weights @ correlations.clamp(max=1)
    mean = weighted_sum / weights.sum()
    return bounded(float(mean), 0, 1)


def _some_repeat(correlations: torch.Tensor, error: float) -> bool:
    """Return whether correlations (descending) repeat, though others differ from them.

    Repeats do no harm if all correlations are about equal, since weights do not matter then.
    """
    gaps = correlations[:-1] - correlations[1:]
    differ = float(correlations.max() - correlations.min()) > _NEGLIGIBLE
    return differ and bool((gaps <= max(_EQUAL, error)).any())


def procrustes(x: Sample, y: Sample) -> Outcome:
    """Compute the similarity ||x^T y||_* / (||x||_F ||y||_F) of centred samples.

    In [0, 1], a similarity: the cosine after the best orthogonal map. The normalised Procrustes
    distance is sqrt(2 - 2 times this). It is biased upwards if rows are few. None if a sample has
    no variance (zero), or none above rounding (within_rounding). Source: Williams et al. 2021,
    "Generalized shape metrics on neural representations", sec. 2; Golub & Van Loan, Matrix
    Computations, sec. 6.4.1.
    """
    if without := _without_direction(x, y):
        return without
    x_left, x_values, _ = x.basis
    y_left, y_values, _ = y.basis
    # x^T y without the rotations on both sides, which do not change its singular values
    x_scaled = x_left * x_values
    y_scaled = y_left * y_values
    core = x_scaled.T @ y_scaled
    nuclear_norm = torch.linalg.svdvals(core).sum()
    x_norm = torch.linalg.vector_norm(x_values)
    y_norm = torch.linalg.vector_norm(y_values)
    return bounded(float(nuclear_norm / (x_norm * y_norm)), 0, 1)


def subspace_overlap(x: Sample, y: Sample, k: int = 10) -> Outcome:
    """Compute the mean squared cosine of the angles between leading left singular subspaces.

    In [0, 1], a similarity: ||U^T V||_F^2 / k, with U and V the `k` directions in the n rows in
    which centred x and y vary most; about k / (n - 1) by chance. If a sample has fewer directions,
    k is the smaller rank. None as for `svcca`. Source: Bjorck & Golub 1973, "Numerical methods for
    computing angles between linear subspaces"; Gur-Ari et al. 2018, "Gradient descent happens in a
    tiny subspace".
    """
    count = min(k, len(x.basis.values), len(y.basis.values))
    if refused := _refused(x, y, count, count):
        return refused
    cosines = x.basis.left[:, :count].T @ y.basis.left[:, :count]
    return bounded(float(cosines.square().sum()) / count, 0, 1)


def mutual_knn(x: Sample, y: Sample, k: int = 10) -> Outcome:
    """Compute the share of each row's `k` nearest rows, by Euclidean distance, common to x and y.

    In [0, 1], a similarity, averaged over all rows; about k / (n - 1) by chance. Rows that tie for
    the last places, such as those of equal tokens, count by their expected overlap over all orders
    of the tied rows, drawn for each sample separately: a sample with ties is not wholly similar to
    itself. None if a sample has no variance (zero), or if all other rows are neighbours, n - 1 <= k
    (n_less_than_d). Source: Huh et al. 2024, "The platonic representation hypothesis", sec. 2
    (there by inner products).
    """
    if x.rows - 1 <= k:
        return Outcome(None, "n_less_than_d")
    if x.self_cross == 0 or y.self_cross == 0:
        return Outcome(None, "zero")
    shared = float((x.neighbours(k) * y.neighbours(k)).sum())
    return bounded(shared / (k * x.rows), 0, 1)


def _directions_holding(variance: float, sample: Sample) -> int:
    """Return the fewest leading directions with this share of the squared norm; 0 without any."""
    cumulative = sample.basis.values.square().cumsum(0)
    short_of_it = int((cumulative < variance * cumulative[-1:]).sum())
    return min(short_of_it + 1, len(cumulative))


def _refused(x: Sample, y: Sample, x_count: int, y_count: int) -> Outcome | None:
    """Return an outcome without a value if leading directions cannot be compared, else None."""
    if without := _without_direction(x, y):
        return without
    if fills_all_rows(max(x_count, y_count), x, y):
        return Outcome(None, "n_less_than_d")
    are_unique = x.is_unique(x_count) and y.is_unique(y_count)
    return None if are_unique else Outcome(None, "not_unique")


def _without_direction(x: Sample, y: Sample) -> Outcome | None:
    if x.self_cross == 0 or y.self_cross == 0:
        return Outcome(None, "zero")
    fewest = min(len(x.basis.values), len(y.basis.values))
    return None if fewest else Outcome(None, "within_rounding")


def cosine(x: Matrix, y: Matrix) -> Outcome:
    """Compute the cosine sum x_ij y_ij / (||x||_F ||y||_F) of all entries as one vector.

    In [-1, 1], a similarity; None (zero) for a zero matrix. For gradients it says whether two steps
    pull the same way. Columns are not centred. Source: Golub & Van Loan, Matrix Computations, sec.
    2.2 (the angle of two vectors).
    """
    # The cosine does not depend on scale, but the norms could leave the range of float64.
    x, y = normalized(x)[0], normalized(y)[0]
    norms = norm(x) * norm(y)
    return Outcome(None, "zero") if norms == 0 else bounded(inner(x, y) / norms, -1, 1)


def relative_distance(x: Matrix, y: Matrix) -> Outcome:
    """Compute the relative distance ||x - y||_F / ||y||_F from the reference y.

    In [0, inf), a ratio; None (zero) for a reference of zero. Source: Golub & Van Loan, Matrix
    Computations, sec. 2.3 (relative error in a norm).
    """
    ratio = norm_ratio(difference(x, y), y)
    return Outcome(None, "zero") if ratio is None else Outcome(ratio)
