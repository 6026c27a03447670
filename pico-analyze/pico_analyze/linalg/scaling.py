"""Extreme magnitudes as ordinary ones times a power of two, which rounds nothing."""

from __future__ import annotations

import math

import numpy as np
import torch

from pico_analyze.linalg.decompositions import REAL

_SAFE_EXPONENT = 64
"""Magnitudes from 2^-64 to 2^64 are not scaled: fourth powers of products of two stay in range."""


def normalized_entries(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Divide finite x by a power of two, 2^e, and return it in float64 with e.

    e is 0 unless the entries are extreme.
    """
    dense = x.to(REAL)
    low, high = map(float, dense.aminmax()) if dense.numel() else (0.0, 0.0)
    exponent = math.frexp(max(abs(low), abs(high)))[1]
    if abs(exponent) <= _SAFE_EXPONENT:
        return dense, 0
    return times_powers(dense, -exponent), exponent


def times_powers(x: torch.Tensor, exponent: int) -> torch.Tensor:
    """Compute x * 2^exponent, rounded once; infinite beyond the range of float64."""
    if exponent == 0:
        return x
    # 2^exponent itself may lie beyond the range, though the result does not: hence ldexp.
    with np.errstate(over="ignore", under="ignore"):
        return torch.from_numpy(np.ldexp(x.numpy(), exponent))


def times_power(value: float, exponent: int) -> float:
    """Compute `times_powers` of one number."""
    if exponent == 0:
        return value
    return float(times_powers(torch.tensor([value], dtype=REAL), exponent))
