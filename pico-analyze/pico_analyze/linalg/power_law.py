"""The power law that fits the upper tail of some values best."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

_BLOCK = 128  # lower ends that are tried at a time


class PowerLaw(NamedTuple):
    """Density ~ x^-exponent for x >= least; `distance` is that of Kolmogorov and Smirnov over those
    `tail` values."""

    exponent: float
    least: float
    distance: float
    tail: int


def fit(logs: torch.Tensor) -> PowerLaw | None:
    """Fit by maximum likelihood above the lower end, one of the values, at which the fit is closest
    to what is there.

    `logs` are logarithms of the values, descending; those closer than rounding are one value. Of
    the m values from x_m up the likeliest exponent is 1 + m / sum ln(x_i / x_m), and (x / x_m)^(1 -
    exponent) is the share above x. Source: Clauset, Shalizi & Newman 2009, "Power-law distributions
    in empirical data", eq. 3.1 and 3.9.
    """
    n = len(logs)
    if n == 0:
        return None
    counts = torch.arange(1, n + 1, dtype=torch.float64)
    excess = logs.cumsum(0) - counts * logs  # sum ln(x_i / x_m)
    apart = n * torch.finfo(torch.float64).eps * max(1.0, float(logs.abs().max()))
    last_of_its_value = torch.cat([logs[:-1] - logs[1:] > apart, torch.ones(1, dtype=torch.bool)])
    ends = torch.nonzero(last_of_its_value & (excess > counts * apart))[:, 0]
    if len(ends) == 0:
        return None
    best = PowerLaw(math.inf, math.inf, math.inf, 0)
    for block in ends.split(_BLOCK):
        tails, shares = logs[: block[-1] + 1], counts[: block[-1] + 1]
        slopes = counts[block] / excess[block]
        fitted = torch.exp(slopes[:, None] * (logs[block, None] - tails))
        above = shares / counts[block, None]
        gaps = torch.maximum(
            (fitted - above).abs(), (fitted - above + 1 / counts[block, None]).abs()
        )
        distances = gaps.masked_fill(tails < logs[block, None], 0).amax(dim=1)
        least = int(distances.argmin())
        if distances[least] < best.distance:
            end = block[least]
            best = PowerLaw(
                1 + float(slopes[least]),
                float(logs[end].exp()),
                float(distances[least]),
                int(end) + 1,
            )
    return best
