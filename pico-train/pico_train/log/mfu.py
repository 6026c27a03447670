"""Model FLOPs utilisation: the measured rate of matrix products that training is compared with."""

from __future__ import annotations

import time
from functools import cache, partial
from typing import Literal

import torch

Wanted = Literal["auto", "on", "off"]

_WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
_LONG_PRODUCT = 0.01
"""Seconds of one product beyond which wider ones are not tried."""
_TIME_PER_WIDTH = 0.03
"""Seconds for the products of one width; at least three are made."""


def measures(wanted: Wanted, device: torch.device) -> bool:
    """Whether `log.mfu` asks for the measurement on `device`; "auto" leaves out CPUs."""
    # On shared CPU cores, the rate of a tenth of a second was wrong by a factor of 40.
    return wanted == "on" or (wanted == "auto" and device.type != "cpu")


@cache
def matmul_rate(device: torch.device, precision: str, threads: int) -> float:
    """Measure how many floating-point operations a second a square matrix product does.

    The product has the precision of training: "fp32" (with TF32 if torch allows it) or "bf16". The
    rate is the best of several widths, takes less than half a second, and is measured once a
    process; `threads` is only a key of that cache, for the rate of a CPU depends on it.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for width in _WIDTHS:
        seconds = _shortest_product(width, device, dtype)
        best = max(best, 2 * width**3 / seconds)
        # Wider products are hardly faster by then, and take much longer.
        if seconds > _LONG_PRODUCT:
            break
    return best


def _shortest_product(width: int, device: torch.device, dtype: torch.dtype) -> float:
    """Measure the seconds of one product of matrices (width, width): the least of several times."""
    left, right = _draw_pair(width, device, dtype)
    times: list[float] = []
    while len(times) < 3 or sum(times) < _TIME_PER_WIDTH:
        times.append(_time_product(left, right))
    return min(times)  # the first product, which warms up, is rarely the least


def _draw_pair(
    width: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    # torch's global generators stay untouched, so that measuring does not change training.
    generator = torch.Generator(device).manual_seed(0)
    draw = partial(torch.randn, width, width, generator=generator, device=device, dtype=dtype)
    return draw(), draw()


def _time_product(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    # Reading one entry waits for the device; its transfer is short beside the product.
    (left @ right)[0, 0].item()
    return time.perf_counter() - start
