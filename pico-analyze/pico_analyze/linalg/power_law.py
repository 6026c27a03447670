"""The power law that best fits the upper tail of a set of values."""

from __future__ import annotations

from typing import NamedTuple

import torch

_BLOCK = 128  # candidates of x_min compared at a time, to bound memory


class PowerLaw(NamedTuple):
    """The density x^-exponent for x >= least, fitted to the `tail` largest values.

    `distance` is the Kolmogorov-Smirnov distance from those values.
    """

    exponent: float
    least: float
    distance: float
    tail: int


def fit(logs: torch.Tensor) -> PowerLaw | None:
    """Fit a power law by maximum likelihood to the upper tail that it fits best.

    Each value is a candidate for x_min, the lower end of the tail. For the m values from x_m up the
    likeliest exponent is 1 + m / sum ln(x_i / x_m), and the fitted share above x is
    (x / x_m)^(1 - exponent). The tail with the least Kolmogorov-Smirnov distance is chosen. None if
    all values are equal, or there are none.

    Args:
        logs: logarithms of the values, descending; values that differ only by rounding are equal.

    Source: Clauset, Shalizi & Newman 2009, "Power-law distributions in empirical data", eq. 3.1 and
    3.9.
    """
    n = len(logs)
    if n == 0:
        return None
    # counts[m - 1] is the number of values in the tail that ends at index m - 1.
    counts = torch.arange(1, n + 1, dtype=torch.float64)
    excess = logs.cumsum(0) - counts * logs  # sum ln(x_i / x_m)
    ends = _tail_ends(logs, counts, excess)
    if len(ends) == 0:
        return None
    laws = [_best_of(block, logs, counts, excess) for block in ends.split(_BLOCK)]
    return min(
        laws, key=lambda law: law.distance
    )  # the first, so the shortest tail, of equal ones


def _tail_ends(logs: torch.Tensor, counts: torch.Tensor, excess: torch.Tensor) -> torch.Tensor:
    """Return the indices of the values at which a tail may end, ascending."""
    rounding = len(logs) * torch.finfo(torch.float64).eps * max(1.0, float(logs.abs().max()))
    # A tail holds all values that are equal to its least, so it ends at the last of them.
    is_last_of_equals = torch.ones(len(logs), dtype=torch.bool)
    is_last_of_equals[:-1] = logs[:-1] - logs[1:] > rounding
    # Without excess all values of the tail are equal, and no exponent describes them.
    varies = excess > counts * rounding
    return torch.nonzero(is_last_of_equals & varies)[:, 0]


def _best_of(
    ends: torch.Tensor, logs: torch.Tensor, counts: torch.Tensor, excess: torch.Tensor
) -> PowerLaw:
    """Return the best fit among the tails that end at `ends`."""
    longest = int(ends[-1]) + 1
    x, rank = logs[:longest], counts[:longest]  # (longest,)
    x_min, tail = logs[ends, None], counts[ends, None]  # (ends, 1)
    # The slope is the exponent of the share above x, one less than that of the density.
    slopes = counts[ends] / excess[ends]
    fitted = torch.exp(slopes[:, None] * (x_min - x))  # (ends, longest): share above x
    # The empirical share jumps at each value, from (rank - 1) / tail to rank / tail.
    gaps = fitted - rank / tail
    distances = torch.maximum(gaps.abs(), (gaps + 1 / tail).abs())
    largest = distances.masked_fill(x < x_min, 0).amax(dim=1)
    best = int(largest.argmin())
    end = ends[best]
    return PowerLaw(
        exponent=1 + float(slopes[best]),
        least=float(logs[end].exp()),
        distance=float(largest[best]),
        tail=int(end) + 1,
    )
