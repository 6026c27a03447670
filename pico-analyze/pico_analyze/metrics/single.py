"""Metrics of one matrix or vector, each a pure function that returns an `Outcome`.

A metric takes the `Spectrum` of a matrix, its entries in float64, its `Sample` or a `WeightUpdate`.
s are the singular values in descending order, k = min(m, n).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pico_analyze.linalg.matrix import (
    Spectrum,
    WeightUpdate,
    norm,
    norm_ratio,
    sorted_magnitudes,
)
from pico_analyze.linalg.power_law import PowerLaw
from pico_analyze.linalg.sample import Sample
from pico_analyze.linalg.scaling import normalized_entries

FEWEST_FOR_A_TAIL = 50
"""The fewest values that a power law is fitted to, by the rule of thumb of Clauset et al. 2009."""


class Outcome(NamedTuple):
    """A value and its status; the value is None if the definition gives none."""

    value: float | None
    status: str = "ok"


def bounded(value: float, low: float, high: float) -> Outcome:
    """Clip a value to [low, high], where it lies by definition, apart from rounding."""
    return Outcome(min(max(value, low), high))


def effective_rank(spectrum: Spectrum) -> Outcome:
    """Compute the effective rank exp(-sum p ln p) with p_i = s_i / sum(s) and 0 ln 0 = 0.

    In [1, k], dimensions; 0 for the zero matrix. Source: Roy & Vetterli 2007, "The effective rank",
    eq. 1-3.
    """
    if spectrum.spectral_norm == 0:
        return Outcome(0.0, "zero")
    p = spectrum.relative / spectrum.relative.sum()
    # xlogy gives 0 ln 0 = 0.
    entropy = -torch.xlogy(p, p).sum()
    return bounded(float(torch.exp(entropy)), 1, spectrum.full_rank)


def per(spectrum: Spectrum) -> Outcome:
    """Compute the proportional effective rank, effective_rank / k.

    In [1/k, 1], fraction of full rank; 0 for the zero matrix. Source: Diehl Martinez et al. 2024,
    "Tending towards stability".
    """
    # An effective rank always has a value; `or` only satisfies the type checker.
    rank = effective_rank(spectrum)
    return Outcome((rank.value or 0.0) / spectrum.full_rank, rank.status)


def condition_number(spectrum: Spectrum) -> Outcome:
    """Compute the condition number s_1 / s_k in the 2-norm.

    In [1, inf), a ratio. None (rank_deficient) if s_k is at most the tolerance, None (zero) for the
    zero matrix. Source: Golub & Van Loan, Matrix Computations, sec. 2.6.2.
    """
    if spectrum.spectral_norm == 0:
        return Outcome(None, "zero")
    if len(spectrum.significant) < spectrum.full_rank:
        return Outcome(None, "rank_deficient")
    return Outcome(spectrum.spectral_norm / float(spectrum.values[-1]))


def effective_condition_number(spectrum: Spectrum) -> Outcome:
    """Compute s_1 / s_j, where s_j is the least singular value above the tolerance.

    In [1, inf), a ratio. None (zero) for the zero matrix, and None (within_rounding) if no singular
    value is above the tolerance. Source: the condition number of the matrix restricted to its
    numerical row space (Golub & Van Loan, sec. 5.5).
    """
    if spectrum.spectral_norm == 0:
        return Outcome(None, "zero")
    if len(spectrum.significant) == 0:
        return Outcome(None, "within_rounding")
    return Outcome(spectrum.spectral_norm / float(spectrum.significant[-1]))


def numerical_rank(spectrum: Spectrum) -> Outcome:
    """Count the singular values that exceed the tolerance.

    In [0, k], dimensions. The tolerance is a worst case, 7 to 46 times the true rounding, and grows
    with the width: compare ranks at one shape and dtype only. 0 for the zero matrix (zero), and for
    one that rounding hides (within_rounding). Source: Golub & Van Loan, Matrix Computations, sec.
    5.4.1; the tolerance: `linalg`.
    """
    rank = float(len(spectrum.significant))
    if spectrum.spectral_norm == 0:
        return Outcome(rank, "zero")
    return Outcome(rank, "ok" if rank else "within_rounding")


def stable_rank(spectrum: Spectrum) -> Outcome:
    """Compute the stable rank ||W||_F^2 / ||W||_2^2.

    In [1, k], dimensions; 0 for the zero matrix. Source: Rudelson & Vershynin 2007, "Sampling from
    large matrices".
    """
    if spectrum.spectral_norm == 0:
        return Outcome(0.0, "zero")
    return bounded(float(spectrum.relative.square().sum()), 1, spectrum.full_rank)


def participation_ratio(spectrum: Spectrum) -> Outcome:
    """Compute the participation ratio (sum s^2)^2 / sum s^4.

    In [1, k], dimensions; 0 for the zero matrix. Source: Gao et al. 2017, "A theory of
    multineuronal dimensionality, dynamics and measurement".
    """
    if spectrum.spectral_norm == 0:
        return Outcome(0.0, "zero")
    squares = spectrum.relative.square()
    ratio = squares.sum().square() / squares.square().sum()
    return bounded(float(ratio), 1, spectrum.full_rank)


def spectral_entropy(spectrum: Spectrum) -> Outcome:
    """Compute the spectral entropy -sum p ln p with p_i = s_i^2 / sum(s^2) and 0 ln 0 = 0.

    In [0, ln k], nats; 0 for the zero matrix. The p_i are shares of the squared norm, whereas
    `effective_rank` takes shares of the nuclear norm. Source: Alter et al. 2000, "Singular value
    decomposition for genome-wide expression data processing", not divided by ln k.
    """
    if spectrum.spectral_norm == 0:
        return Outcome(0.0, "zero")
    squares = spectrum.relative.square()
    p = squares / squares.sum()
    return bounded(float(-torch.xlogy(p, p).sum()), 0, math.log(spectrum.full_rank))


def heavy_tail_exponent(spectrum: Spectrum) -> Outcome:
    """Fit the exponent a of a power law x^-a to the largest eigenvalues x = s^2, x >= x_min.

    In (1, inf), an exponent. The fit is by maximum likelihood above the x_min with the least
    Kolmogorov-Smirnov distance; `heavy_tail_ks` is that distance (two-sided), `heavy_tail_count`
    the number of values fitted. It is not comparable with the packages powerlaw and plfit, which
    take the one-sided distance and cap the exponent. None (too_few) if fewer than 50 values are not
    0, or if they are all equal. Source: Clauset et al. 2009, "Power-law distributions in empirical
    data", sec. 3; of spectra, Martin & Mahoney 2021.
    """
    law = _tail(spectrum)
    return Outcome(law.exponent) if isinstance(law, PowerLaw) else law


def heavy_tail_ks(spectrum: Spectrum) -> Outcome:
    """Compute the distance max |F(x) - P(x)| of eigenvalues from the fit of `heavy_tail_exponent`.

    In [0, 1], a distance. F is the distribution of the eigenvalues x = s^2 from x_min up, P the
    fitted one. It is two-sided, so not comparable with the distance of powerlaw and plfit. If a
    power law holds, it falls as the root of the number of values; otherwise it stays, and the
    exponent describes nothing. None as for the exponent. Source: Clauset et al. 2009, "Power-law
    distributions in empirical data", eq. 3.9.
    """
    law = _tail(spectrum)
    return Outcome(law.distance) if isinstance(law, PowerLaw) else law


def heavy_tail_count(spectrum: Spectrum) -> Outcome:
    """Count the largest eigenvalues that the power law of `heavy_tail_exponent` is fitted to.

    In [2, k], eigenvalues. An exponent of few values is uncertain: its standard error is about
    (a - 1) / sqrt(count). None as for the exponent. Source: Clauset et al. 2009, "Power-law
    distributions in empirical data", eq. 3.2.
    """
    law = _tail(spectrum)
    return Outcome(float(law.tail)) if isinstance(law, PowerLaw) else law


def _tail(spectrum: Spectrum) -> PowerLaw | Outcome:
    if spectrum.spectral_norm == 0:
        return Outcome(None, "zero")
    law = spectrum.power_law if len(spectrum.nonzero) >= FEWEST_FOR_A_TAIL else None
    return law or Outcome(None, "too_few")


def nuclear_norm(spectrum: Spectrum) -> Outcome:
    """Compute the nuclear norm sum(s).

    In [0, inf), unit of the entries. Source: Horn & Johnson, Matrix Analysis, sec. 5.6.
    """
    return Outcome(spectrum.in_unit_of_entries(float(spectrum.values.sum())))


def spectral_norm(spectrum: Spectrum) -> Outcome:
    """Compute the spectral norm s_1.

    In [0, inf), unit of the entries. Source: Horn & Johnson, Matrix Analysis, sec. 5.6.
    """
    return Outcome(spectrum.in_unit_of_entries(spectrum.spectral_norm))


def frobenius_norm(spectrum: Spectrum) -> Outcome:
    """Compute the Frobenius norm sqrt(sum s^2), the Euclidean norm of all entries.

    In [0, inf), unit of the entries. Source: Horn & Johnson, Matrix Analysis, sec. 5.6.
    """
    return Outcome(spectrum.in_unit_of_entries(norm(spectrum.values)))


def max_abs(x: torch.Tensor) -> Outcome:
    """Compute the largest magnitude of an entry, max |x_ij|.

    In [0, inf), unit of the entries. This is not the operator norm for the infinity norm, which is
    a sum over a row. Source: Horn & Johnson, Matrix Analysis, sec. 5.6 (the vector norm l_inf of
    the entries).
    """
    return Outcome(float(x.abs().max()))


def gini(x: torch.Tensor) -> Outcome:
    """Compute the Gini index sum_i (2i - n - 1) a_(i) / (n sum a) of a = |x| ascending, i = 1..n.

    In [0, 1 - 1/n], an index: 0 if all magnitudes are equal, 1 - 1/n if only one entry is not zero.
    0 for the zero tensor. Source: Hurley & Rickard 2009, "Comparing measures of sparsity", table I.
    """
    # Scaled, since the sum of extreme entries would leave the range of float64
    magnitudes = sorted_magnitudes(normalized_entries(x)[0])
    total, n = magnitudes.sum(), len(magnitudes)
    if total == 0:
        return Outcome(0.0, "zero")
    weights = torch.arange(1 - n, n, 2, dtype=magnitudes.dtype)  # 2i - n - 1
    return bounded(float(weights @ magnitudes / (n * total)), 0, 1 - 1 / n)


def hoyer(x: torch.Tensor) -> Outcome:
    """Compute Hoyer's sparsity (sqrt(n) - L1 / L2) / (sqrt(n) - 1) over the n entries.

    In [0, 1], an index: 0 if all magnitudes are equal, 1 if only one entry is not zero. 0 for the
    zero tensor. Source: Hoyer 2004, "Non-negative matrix factorization with sparseness
    constraints", sec. 3.1.
    """
    root = x.numel() ** 0.5
    largest = x.abs().max()
    if largest == 0:
        return Outcome(0.0, "zero")
    # For one entry the definition is 0 / 0.
    if root == 1:
        return Outcome(1.0)
    magnitudes = x.abs() / largest
    ratio = float(magnitudes.sum() / torch.linalg.vector_norm(magnitudes))
    return bounded((root - ratio) / (root - 1), 0, 1)


def kurtosis(x: torch.Tensor) -> Outcome:
    """Compute the excess kurtosis mean(z^4) - 3 of all entries, z in standard deviations.

    In [-2, inf), a ratio: 0 for normal entries, about n - 5 if one of n is not zero. The moments
    are those of the population, about the mean, not corrected for n. None (zero) if all entries are
    equal. Source: Pearson 1905; Joanes & Gill 1998, "Comparing measures of sample skewness and
    kurtosis", g_2.
    """
    if x.min() == x.max():
        return Outcome(None, "zero")
    x, _ = normalized_entries(x)
    centred = x - x.mean()
    # In units of the largest deviation fourth powers stay in range.
    squares = (centred / centred.abs().max()).square()
    ratio = float(squares.square().mean() / squares.mean().square())
    return Outcome(max(ratio, 1) - 3)  # mean(y^2) >= mean(y)^2 up to rounding


def near_zero_share(x: torch.Tensor, fraction: float = 0.01) -> Outcome:
    """Compute the share of entries with |x| at most `fraction` of the root mean square.

    In [0, 1], a share of entries: 0.008 for normal entries at a fraction of 0.01, and 1 for the
    zero tensor. The threshold follows the scale, as that of magnitude pruning does. Source: Han et
    al. 2015, "Learning both weights and connections for efficient neural networks" (a threshold
    relative to the standard deviation).
    """
    largest = x.abs().max()
    if largest == 0:
        return Outcome(1.0, "zero")
    magnitudes = x.abs() / largest
    threshold = fraction * magnitudes.square().mean().sqrt()
    return Outcome(float((magnitudes <= threshold).double().mean()))


def anisotropy(sample: Sample) -> Outcome:
    """Compute the mean cosine of different rows, not centred.

    In [-1/(n - 1), 1], a similarity: near 0 if the n rows spread evenly. It is (||u||^2 - n) /
    (n (n - 1)) for the sum u of the rows scaled to length 1. Rows of zeros have no direction and
    are left out; None (zero) if fewer than two remain. Source: Ethayarajh 2019, "How contextual are
    contextualized word representations?", sec. 3.2.
    """
    # The metric is about rows that are not centred.
    rows = sample.x + sample.mean
    lengths = torch.linalg.vector_norm(rows, dim=1)
    has_direction = lengths > 0
    directions = rows[has_direction] / lengths[has_direction, None]
    n = len(directions)
    if n < 2:
        return Outcome(None, "zero")
    total = directions.sum(dim=0)
    cosines_of_pairs = float(total @ total) - n  # each row's cosine with itself is 1
    return bounded(cosines_of_pairs / (n * (n - 1)), -1 / (n - 1), 1)


def intrinsic_dimension(sample: Sample) -> Outcome:
    """Compute (sum l)^2 / sum l^2 over the eigenvalues l of the covariance of the columns.

    In [1, k], dimensions; 0 for a sample without variance. This is the participation ratio of the
    centred rows, and it is limited by their number. It needs no decomposition: the sums are the
    traces of the covariance and of its square. Source: Gao et al. 2017, "A theory of multineuronal
    dimensionality, dynamics and measurement".
    """
    if sample.self_cross == 0:
        return Outcome(0.0, "zero")
    squared_trace = float(sample.diagonal.sum()) ** 2
    return bounded(squared_trace / sample.self_cross, 1, min(sample.matrix.shape))


def dead_units(sample: Sample) -> Outcome:
    """Compute the share of columns without variance, such as those that are 0 on every row.

    In [0, 1], a share of columns. A column varies if it does so by more than the rounding of its
    mean. Source: Maas et al. 2013, "Rectifier nonlinearities improve neural network acoustic
    models" (units that never activate).
    """
    # `Sample.x` sets columns that vary only by rounding to exactly 0.
    return Outcome(float((sample.x == 0).all(dim=0).double().mean()))


def update_to_weight_ratio(update: WeightUpdate) -> Outcome:
    """Compute ||W(t2) - W(t1)||_F / ||W(t1)||_F over the window of the update.

    In [0, inf), a ratio; None (zero) if W(t1) is zero. Over a single step 1e-3 is a common rule of
    thumb; over a longer window it is at most about the sum over its steps. Source: You et al. 2017,
    "Large batch training of convolutional networks", sec. 4 (the ratio, inverted).
    """
    ratio = norm_ratio(update.change, update.start)
    return Outcome(None, "zero") if ratio is None else Outcome(ratio)
