"""Spectra of low-rank updates, and the ranks that they suggest under a budget.

Shapes: m outputs, n inputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def singular_values(B: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """The r singular values of B A, descending, float64 on CPU; B is (m, r), A (r, n).

    B = Q_B R_B and A^T = Q_A R_A have the spectrum of the small R_B R_A^T: orthogonal maps on
    either side leave it.
    """
    B, A = B.detach().to("cpu", torch.float64), A.detach().to("cpu", torch.float64)
    return torch.linalg.svdvals(torch.linalg.qr(B).R @ torch.linalg.qr(A.T).R.T)


def effective_rank(values: torch.Tensor) -> float:
    """exp(-sum p ln p) of p = s / sum(s) (Roy & Vetterli 2007); 0 of the zero matrix."""
    total = values.sum()
    if total == 0:
        return 0.0
    share = values / total
    return math.exp(-torch.special.xlogy(share, share).sum().item())


def energy_rank(values: torch.Tensor, energy: float) -> float:
    """The least k whose k largest singular values hold the share `energy` of the sum of squares; 0
    of the zero one."""
    squares = values.square()
    if squares.sum() == 0:
        return 0.0
    held = squares.cumsum(0) / squares.sum()
    return float((held < energy - 1e-12).sum().item() + 1)


def share_out(
    demands: Mapping[str, float],
    costs: Mapping[str, int],
    most: Mapping[str, int],
    least: int,
    budget: int,
) -> dict[str, int]:
    """A rank for each module, in proportion to its demand, with sum(rank * cost) up to `budget`;
    each between `least` (or `most` where that is less) and `most`.

    One common factor is rounded down for all; what is left goes, a rank each, to those who lost
    most by that. Without any demand, all are alike. A `budget` below what `least` takes is exceeded
    by it.
    """
    wanted = demands if any(demands.values()) else dict.fromkeys(demands, 1.0)

    def at(factor: float) -> dict[str, int]:
        return {
            name: min(max(math.floor(factor * d), least), most[name]) for name, d in wanted.items()
        }

    def cost(ranks: Mapping[str, int]) -> int:
        return sum(rank * costs[name] for name, rank in ranks.items())

    low, high = 0.0, max(most.values()) / min(d for d in wanted.values() if d > 0)
    if cost(at(high)) <= budget:
        return at(high)
    for _ in range(100):  # halves the distance between two factors until no float lies between them
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) <= budget else (low, middle)
    ranks = at(low)
    for name in sorted(wanted, key=lambda name: ranks[name] - low * wanted[name]):
        if ranks[name] < most[name] and cost(ranks) + costs[name] <= budget:
            ranks[name] += 1
    return ranks
