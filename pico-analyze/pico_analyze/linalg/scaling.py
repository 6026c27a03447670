"""Extreme magnitudes as ordinary ones times a power of two, which rounds nothing."""

from __future__ import annotations

import math

import numpy as np
import torch

from pico_analyze.linalg.decompositions import REAL

_SAFE_EXPONENT = 64
"""Magnitudes from 2^-64 to 2^64 are left as they are: fourth powers of products of two such are
within float64."""


def normalized_entries(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Finite x in float64 divided by a power of two, 2^e, and e, which is 0 unless its entries are
    extreme."""
    dense = x.to(REAL)
    largest = max(map(abs, map(float, dense.aminmax()))) if dense.numel() else 0.0
    exponent = math.frexp(largest)[1]
    return (
        (dense, 0)
        if abs(exponent) <= _SAFE_EXPONENT
        else (times_powers(dense, -exponent), exponent)
    )


def times_powers(x: torch.Tensor, exponent: int) -> torch.Tensor:
    """x * 2^exponent, rounded once; infinite where float64 ends."""
    if exponent == 0:
        return x
    with np.errstate(over="ignore", under="ignore"):
        return torch.from_numpy(np.ldexp(x.numpy(), exponent))


def times_power(value: float, exponent: int) -> float:
    """`times_powers` of one number."""
    return float(times_powers(torch.tensor([value], dtype=REAL), exponent)) if exponent else value
