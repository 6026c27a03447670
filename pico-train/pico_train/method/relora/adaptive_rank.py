"""Spectra of low-rank updates, and the ranks that follow from them under a budget.

Shapes: m outputs, n inputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def singular_values(B: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Return the r singular values of B A, descending, float64 on CPU; B is (m, r), A (r, n).

    With B = Q_B R_B and A^T = Q_A R_A they are those of the small R_B R_A^T, since orthogonal maps
    on either side do not change a spectrum.
    """
    B = B.detach().to("cpu", torch.float64)
    A = A.detach().to("cpu", torch.float64)
    R_B = torch.linalg.qr(B).R
    R_A = torch.linalg.qr(A.T).R
    return torch.linalg.svdvals(R_B @ R_A.T)


def effective_rank(values: torch.Tensor) -> float:
    """Return exp(-sum p ln p) of p = s / sum(s) (Roy & Vetterli 2007); 0 for the zero matrix."""
    total = values.sum()
    if total == 0:
        return 0.0
    share = values / total
    # xlogy gives 0 for a share of 0.
    return math.exp(-torch.special.xlogy(share, share).sum().item())


def energy_rank(values: torch.Tensor, energy: float) -> float:
    """Return the least k whose k largest singular values reach `energy`, a share of all squares.

    It is 0 for the zero matrix.
    """
    squares = values.square()
    if squares.sum() == 0:
        return 0.0
    reached = squares.cumsum(0) / squares.sum()
    # The tolerance keeps rounding of the running sum from asking for one value more.
    return float((reached < energy - 1e-12).sum().item() + 1)


def total_cost(ranks: Mapping[str, int], costs: Mapping[str, int]) -> int:
    """Return the sum of rank * cost over all modules."""
    return sum(rank * costs[name] for name, rank in ranks.items())


def share_out(
    demands: Mapping[str, float],
    costs: Mapping[str, int],
    most: Mapping[str, int],
    least: int,
    budget: int,
) -> dict[str, int]:
    """Return a rank for each module, in proportion to its demand, with sum(rank * cost) <= budget.

    Each rank lies between `least` and the module's `most`; `most` wins if it is smaller. One common
    factor is rounded down for all modules; the rest of the budget goes, one rank each, to the
    modules that lost most by rounding. If all demands are 0, they count as equal. If `least` alone
    costs more than `budget`, every module gets `least`.
    """
    wanted = demands if any(demands.values()) else dict.fromkeys(demands, 1.0)

    def ranks_at(factor: float) -> dict[str, int]:
        floors = {name: math.floor(factor * demand) for name, demand in wanted.items()}
        return {name: min(max(rank, least), most[name]) for name, rank in floors.items()}

    smallest_demand = min(demand for demand in wanted.values() if demand > 0)
    low, high = 0.0, max(most.values()) / smallest_demand
    # No larger factor would change any rank.
    if total_cost(ranks_at(high), costs) <= budget:
        return ranks_at(high)
    for _ in range(100):  # enough halvings that no float lies between the two factors
        middle = (low + high) / 2
        if total_cost(ranks_at(middle), costs) <= budget:
            low = middle
        else:
            high = middle

    # `low` is now the largest factor that the budget allows.
    ranks = ranks_at(low)
    for name in sorted(wanted, key=lambda name: ranks[name] - low * wanted[name]):
        is_affordable = total_cost(ranks, costs) + costs[name] <= budget
        if ranks[name] < most[name] and is_affordable:
            ranks[name] += 1
    return ranks
