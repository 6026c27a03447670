"""The choice between paired and unpaired statistics, from the seeds alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

LEAST_PARTIAL_PAIRS = 3
"""Pairs needed where some runs of the smaller arm have no partner."""


@dataclass(frozen=True)
class Pairing:
    """Which runs of two arms belong together.

    Attributes:
        pairs: (index in the first arm, index in the second) of each pair, in the order of the first
            arm.
        matched: how many runs have a partner, whether or not that was enough to pair.
        unpaired: for each arm, the indices of the runs that have no partner.
    """

    pairs: tuple[tuple[int, int], ...]
    matched: int
    unpaired: tuple[tuple[int, ...], tuple[int, ...]]


def choose_pairs(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> Pairing:
    """Pair the runs of two arms that have the same key (their seeds), if enough of them have a
    partner.

    Enough is every run of the smaller arm, or at least three pairs and two thirds of the smaller
    arm. Otherwise `pairs` is empty. None is an unknown key and has no partner, nor has a key that
    occurs twice in an arm. Values play no part, so that the choice cannot favour a result.
    """
    partner = {key: place for place, key in enumerate(second) if _is_unique(key, second)}
    pairs = [
        (i, partner[key])
        for i, key in enumerate(first)
        if _is_unique(key, first) and key in partner
    ]
    smaller = min(len(first), len(second))
    partial = len(pairs) >= LEAST_PARTIAL_PAIRS and 3 * len(pairs) >= 2 * smaller
    left = tuple(i for i in range(len(first)) if i not in {i for i, _ in pairs})
    right = tuple(j for j in range(len(second)) if j not in {j for _, j in pairs})
    enough = 0 < len(pairs) == smaller or partial
    return Pairing(tuple(pairs) if enough else (), len(pairs), (left, right))


def _is_unique(key: Hashable | None, keys: Sequence[Hashable | None]) -> bool:
    return key is not None and list(keys).count(key) == 1
