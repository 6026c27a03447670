"""Metrics of one matrix or vector: of its `Spectrum`, its entries in float64, the `Sample` or
`WeightUpdate` that it is.

Each returns an `Outcome`; s are the singular values in descending order, k = min(m, n).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pico_analyze.linalg.matrix import Spectrum, WeightUpdate, norm, norm_ratio, sorted_magnitudes
from pico_analyze.linalg.power_law import PowerLaw
from pico_analyze.linalg.sample import Sample
from pico_analyze.linalg.scaling import normalized_entries

FEWEST_FOR_A_TAIL = 50
"""Values that a power law is fitted to, at least: the rule of thumb of Clauset et al. 2009 for a
reliable estimate."""


class Outcome(NamedTuple):
    """A value and its status; the value is None where the definition gives none."""

    value: float | None
    status: str = "ok"


def bounded(value: float, low: float, high: float) -> Outcome:
    """A value that lies in [low, high] by definition, without the rounding that leads out of it."""
    return Outcome(min(max(value, low), high))


def effective_rank(spectrum: Spectrum) -> Outcome:
    """exp(-sum p ln p) with p_i = s_i / sum(s) and 0 ln 0 = 0; in [1, k], dimensions. 0 for the
    zero matrix.

    Source: Roy & Vetterli 2007, "The effective rank", eq. 1-3.
    """
    if spectrum.spectral_norm == 0:
        return Outcome(0.0, "zero")
    p = spectrum.relative / spectrum.relative.sum()
    return bounded(float(torch.exp(-torch.xlogy(p, p).sum())), 1, spectrum.full_rank)


def per(spectrum: Spectrum) -> Outcome:
    """Proportional effective rank: effective_rank / k; in [1/k, 1], fraction of full rank. 0 for
    the zero matrix.

    Source: Diehl Martinez et al. 2024, "Tending towards stability".
    """
    rank = effective_rank(spectrum)
    return Outcome((rank.value or 0.0) / spectrum.full_rank, rank.status)


def condition_number(spectrum: Spectrum) -> Outcome:
    """s_1 / s_k in the 2-norm; in [1, inf), a ratio. None (rank_deficient) where s_k is at most the
    tolerance.

    Source: Golub & Van Loan, Matrix Computations, sec. 2.6.2.
    """
    if spectrum.spectral_norm == 0:
        return Outcome(None, "zero")
    if len(spectrum.significant) < spectrum.full_rank:
        return Outcome(None, "rank_deficient")
    return Outcome(spectrum.spectral_norm / float(spectrum.values[-1]))


def effective_condition_number(spectrum: Spectrum) -> Outcome:
    """s_1 / s_j, s_j the least singular value above the tolerance; in [1, inf), a ratio.

    None for the zero matrix (zero), and where no singular value is above the tolerance
    (within_rounding).

    Source: the condition number of the matrix restricted to its numerical row space (Golub & Van
    Loan, sec. 5.5).
    """
    if spectrum.spectral_norm == 0:
        return Outcome(None, "zero")
    if len(spectrum.significant) == 0:
        return Outcome(None, "within_rounding")
    return Outcome(spectrum.spectral_norm / float(spectrum.significant[-1]))


def numerical_rank(spectrum: Spectrum) -> Outcome:
    """How many singular values exceed the tolerance; in [0, k], dimensions.

    The tolerance is a worst case, 7 to 46 times the true rounding, and grows with the width:
    compare ranks at one shape and dtype only. 0 for the zero matrix (zero), and for one that
    rounding hides (within_rounding). Source: Golub & Van Loan, Matrix Computations, sec. 5.4.1; the
    tolerance: `linalg`.
    """
    rank = float(len(spectrum.significant))
    if spectrum.spectral_norm == 0:
        return Outcome(rank, "zero")
    return Outcome(rank, "ok" if rank else "within_rounding")


def stable_rank(spectrum: Spectrum) -> Outcome:
    """||W||_F^2 / ||W||_2^2; in [1, k], dimensions. 0 for the zero matrix.

    Source: Rudelson & Vershynin 2007, "Sampling from large matrices".
    """
    if spectrum.spectral_norm == 0:
        return Outcome(0.0, "zero")
    return bounded(float(spectrum.relative.square().sum()), 1, spectrum.full_rank)


def participation_ratio(spectrum: Spectrum) -> Outcome:
    """(sum s^2)^2 / sum s^4; in [1, k], dimensions. 0 for the zero matrix.

    Source: Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".
    """
    if spectrum.spectral_norm == 0:
        return Outcome(0.0, "zero")
    squares = spectrum.relative.square()
    return bounded(float(squares.sum().square() / squares.square().sum()), 1, spectrum.full_rank)


def spectral_entropy(spectrum: Spectrum) -> Outcome:
    """-sum p ln p with p_i = s_i^2 / sum(s^2) and 0 ln 0 = 0; in [0, ln k], nats. 0 for the zero
    matrix.

    Shares of the squared norm, where `effective_rank` takes shares of the nuclear norm. Source:
    Alter et al. 2000, "Singular value decomposition for genome-wide expression data processing",
    not divided by ln k.
    """
    if spectrum.spectral_norm == 0:
        return Outcome(0.0, "zero")
    squares = spectrum.relative.square()
    p = squares / squares.sum()
    return bounded(float(-torch.xlogy(p, p).sum()), 0, math.log(spectrum.full_rank))


def heavy_tail_exponent(spectrum: Spectrum) -> Outcome:
    """a of the power law x^-a that fits the largest eigenvalues x = s^2, x >= x_min; in (1, inf),
    an exponent.

    Maximum likelihood above the x_min at which the Kolmogorov-Smirnov distance is least;
    `heavy_tail_ks` is that distance (two-sided), `heavy_tail_count` the number of values fitted.
    Not comparable with the packages powerlaw and plfit, which take the one-sided distance and cap
    the exponent. None (too_few) where fewer than 50 values are not 0, or where they are all equal.
    Source: Clauset et al. 2009, "Power-law distributions in empirical data", sec. 3; of spectra,
    Martin & Mahoney 2021.
    """
    fit = _tail(spectrum)
    return Outcome(fit.exponent) if isinstance(fit, PowerLaw) else fit


def heavy_tail_ks(spectrum: Spectrum) -> Outcome:
    """max |F(x) - P(x)| of the eigenvalues x = s^2 from the power law of `heavy_tail_exponent`; in
    [0, 1], a distance.

    F is the distribution of the values from x_min up, P the fitted one. Two-sided, so not
    comparable with the distance of powerlaw and plfit. Where a power law holds it falls as the root
    of the number of values; where it does not, it stays, and the exponent describes nothing. None
    as for the exponent. Source: Clauset et al. 2009, "Power-law distributions in empirical data",
    eq. 3.9.
    """
    fit = _tail(spectrum)
    return Outcome(fit.distance) if isinstance(fit, PowerLaw) else fit


def heavy_tail_count(spectrum: Spectrum) -> Outcome:
    """How many of the largest eigenvalues the power law of `heavy_tail_exponent` is fitted to; in
    [2, k], eigenvalues.

    An exponent of few values is uncertain: its standard error is about (a - 1) / sqrt(count). None
    as for the exponent. Source: Clauset et al. 2009, "Power-law distributions in empirical data",
    eq. 3.2.
    """
    fit = _tail(spectrum)
    return Outcome(float(fit.tail)) if isinstance(fit, PowerLaw) else fit


def _tail(spectrum: Spectrum) -> PowerLaw | Outcome:
    if spectrum.spectral_norm == 0:
        return Outcome(None, "zero")
    fit = spectrum.power_law if len(spectrum.nonzero) >= FEWEST_FOR_A_TAIL else None
    return fit or Outcome(None, "too_few")


def nuclear_norm(spectrum: Spectrum) -> Outcome:
    """sum(s); in [0, inf), unit of the entries. Source: Horn & Johnson, Matrix Analysis, sec.
    5.6."""
    return Outcome(spectrum.in_unit_of_entries(float(spectrum.values.sum())))


def spectral_norm(spectrum: Spectrum) -> Outcome:
    """s_1; in [0, inf), unit of the entries. Source: Horn & Johnson, Matrix Analysis, sec. 5.6."""
    return Outcome(spectrum.in_unit_of_entries(spectrum.spectral_norm))


def frobenius_norm(spectrum: Spectrum) -> Outcome:
    """sqrt(sum s^2), the Euclidean norm of all entries; in [0, inf), unit of the entries.

    Source: Horn & Johnson, Matrix Analysis, sec. 5.6.
    """
    return Outcome(spectrum.in_unit_of_entries(norm(spectrum.values)))


def max_abs(x: torch.Tensor) -> Outcome:
    """max |x_ij|; in [0, inf), unit of the entries. Not the operator norm for the infinity norm (a
    row sum).

    Source: Horn & Johnson, Matrix Analysis, sec. 5.6 (the vector norm l_inf of the entries).
    """
    return Outcome(float(x.abs().max()))


def gini(x: torch.Tensor) -> Outcome:
    """sum_i (2i - n - 1) a_(i) / (n sum a) for a = |x| ascending, i = 1..n; in [0, 1 - 1/n]. 0 for
    the zero tensor.

    0 where all magnitudes are equal, 1 - 1/n where one entry holds everything.
    Source: Hurley & Rickard 2009, "Comparing measures of sparsity", table I.
    """
    a = sorted_magnitudes(normalized_entries(x)[0])
    total, n = a.sum(), len(a)
    if total == 0:
        return Outcome(0.0, "zero")
    weights = torch.arange(1 - n, n, 2, dtype=a.dtype)  # 2i - n - 1
    return bounded(float(weights @ a / (n * total)), 0, 1 - 1 / n)


def hoyer(x: torch.Tensor) -> Outcome:
    """(sqrt(n) - L1 / L2) / (sqrt(n) - 1) over the n entries; in [0, 1]. 0 for the zero tensor.

    0 where all magnitudes are equal, 1 where one entry is not zero. Source: Hoyer 2004,
    "Non-negative matrix factorization with sparseness constraints", sec. 3.1.
    """
    root = x.numel() ** 0.5
    largest = x.abs().max()
    if largest == 0:
        return Outcome(0.0, "zero")
    a = x.abs() / largest
    ratio = float(a.sum() / torch.linalg.vector_norm(a))
    return bounded((root - ratio) / (root - 1), 0, 1) if root > 1 else Outcome(1.0)


def kurtosis(x: torch.Tensor) -> Outcome:
    """Excess kurtosis mean(z^4) - 3 of all entries, z in standard deviations from the mean; in [-2,
    inf), a ratio.

    0 for normal entries, about n - 5 where one of n is not zero. Moments of the population, not
    corrected for n. None (zero) where all entries are equal. Source: Pearson 1905; Joanes & Gill
    1998, "Comparing measures of sample skewness and kurtosis", g_2.
    """
    if x.min() == x.max():
        return Outcome(None, "zero")
    x, _ = normalized_entries(x)
    centred = x - x.mean()
    squares = (centred / centred.abs().max()).square()
    return Outcome(max(float(squares.square().mean() / squares.mean().square()), 1) - 3)


def near_zero_share(x: torch.Tensor, fraction: float = 0.01) -> Outcome:
    """Share of entries with |x| at most `fraction` of the root mean square; in [0, 1]. 1 for the
    zero tensor.

    0.008 for normal entries at a fraction of 0.01. The threshold follows the scale, as that of
    magnitude pruning. Source: Han et al. 2015, "Learning both weights and connections for efficient
    neural networks" (a threshold relative to the standard deviation).
    """
    largest = x.abs().max()
    if largest == 0:
        return Outcome(1.0, "zero")
    a = x.abs() / largest
    return Outcome(float((a <= fraction * a.square().mean().sqrt()).double().mean()))


def anisotropy(sample: Sample) -> Outcome:
    """Mean cosine of different rows, not centred; in [-1/(n - 1), 1], a similarity. Near 0 where
    they spread evenly.

    From the sum u of the n rows scaled to length 1: (||u||^2 - n) / (n (n - 1)). Rows of zeros have
    no direction and are left out; None (zero) where fewer than two are left. Source: Ethayarajh
    2019, "How contextual are contextualized word representations?", sec. 3.2.
    """
    raw = sample.x + sample.mean
    lengths = torch.linalg.vector_norm(raw, dim=1)
    directions = raw[lengths > 0] / lengths[lengths > 0, None]
    n = len(directions)
    if n < 2:
        return Outcome(None, "zero")
    total = directions.sum(dim=0)
    return bounded((float(total @ total) - n) / (n * (n - 1)), -1 / (n - 1), 1)


def intrinsic_dimension(sample: Sample) -> Outcome:
    """(sum l)^2 / sum l^2 over the eigenvalues l of the covariance of the columns; in [1, k],
    dimensions.

    The participation ratio of the centred rows: the traces of the covariance and of its square need
    no decomposition. 0 for a sample without variance. Limited by the number of rows. Source: Gao et
    al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".
    """
    if sample.self_cross == 0:
        return Outcome(0.0, "zero")
    return bounded(
        float(sample.diagonal.sum()) ** 2 / sample.self_cross, 1, min(sample.matrix.shape)
    )


def dead_units(sample: Sample) -> Outcome:
    """Share of columns without variance, those that are 0 on every row among them; in [0, 1].

    A column varies when it does so by more than the rounding of its mean. Source: Maas et al. 2013,
    "Rectifier nonlinearities improve neural network acoustic models" (units that never activate).
    """
    return Outcome(float((sample.x == 0).all(dim=0).double().mean()))


def update_to_weight_ratio(update: WeightUpdate) -> Outcome:
    """||W(t2) - W(t1)||_F / ||W(t1)||_F over the window of the update; in [0, inf), a ratio. None where W(t1) is zero.

    Over a single step 1e-3 is a common rule of thumb; over a longer window it is at most about the
    sum over its steps. Source: You et al. 2017, "Large batch training of convolutional networks",
    sec. 4 (the ratio, inverted).
    """
    ratio = norm_ratio(update.change, update.start)
    return Outcome(None, "zero") if ratio is None else Outcome(ratio)
