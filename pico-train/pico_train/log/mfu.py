"""How much of a device's arithmetic training uses, against the rate of matrix products measured on
it."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch

Wanted = Literal["auto", "on", "off"]

_WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
_ENOUGH = 0.01
"""Seconds of one product after which wider ones are not tried."""
_LONGEST = 0.03
"""Seconds after which products of a width end, once there are three."""


def measures(wanted: Wanted, device: torch.device) -> bool:
    """Whether `log.mfu` asks for it on `device`. "auto" leaves CPUs out: on cores that others use
    as well, the rate of a tenth of a second was found to be off by a factor of 40."""
    return wanted == "on" or (wanted == "auto" and device.type != "cpu")


@cache
def matmul_rate(device: torch.device, precision: str, threads: int) -> float:
    """Floating-point operations a second of a square matrix product in the precision of training
    ("fp32" or "bf16"; TF32 where torch was told so), by `threads` threads on a CPU: the best of
    some widths, in less than half a second, once a process.

    It draws from a generator of its own, so that training is what it would be without.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for width in _WIDTHS:
        seconds = _shortest(width, device, dtype)
        best = max(best, 2 * width**3 / seconds)
        if seconds > _ENOUGH:
            break
    return best


def _shortest(width: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a product; the first, which warms up, and the transfer of one entry are in the
    times, not in the best of them by much."""
    draws = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(width, width, generator=draws, device=device, dtype=dtype) for _ in range(2)
    )
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < _LONGEST:
        start = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        taken.append(time.perf_counter() - start)
    return min(taken)
