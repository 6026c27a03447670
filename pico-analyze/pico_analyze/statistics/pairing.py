"""The choice between paired and unpaired statistics by the seeds of the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

LEAST_PARTIAL_PAIRS = 3
"""Fewest pairs if some runs of the smaller arm have no partner."""


@dataclass(frozen=True)
class Pairing:
    """The runs of two arms that belong together.

    Attributes:
        pairs: (index in the first arm, index in the second) of each pair, in the order of the first
            arm.
        matched: how many runs have a partner, whether or not that was enough to pair.
        unpaired: for each arm, the indices of the runs that have no partner.
    """

    pairs: tuple[tuple[int, int], ...]
    matched: int
    unpaired: tuple[tuple[int, ...], tuple[int, ...]]


def choose_pairs(
    first: Sequence[Hashable | None], second: Sequence[Hashable | None]
) -> Pairing:
    """Pair the runs of two arms that have the same key (their seeds), if enough have a partner.

    Otherwise `pairs` is empty. An unknown key (None) has no partner, and neither has a key that
    occurs twice in an arm.
    """
    first_runs = _runs_by_unique_key(first)
    second_runs = _runs_by_unique_key(second)
    shared = [key for key in first_runs if key in second_runs]
    pairs = tuple((first_runs[key], second_runs[key]) for key in shared)
    matched = len(pairs)
    unpaired_first = _without(first, {i for i, _ in pairs})
    unpaired_second = _without(second, {j for _, j in pairs})
    # Only keys and counts decide: a choice that saw the values could favour a result.
    smaller_arm = min(len(first), len(second))
    if not _are_enough(matched, smaller_arm):
        pairs = ()
    return Pairing(pairs, matched, (unpaired_first, unpaired_second))


def _are_enough(pairs: int, smaller_arm: int) -> bool:
    """Tell if all runs of the smaller arm are paired, or three runs and two thirds of them."""
    if pairs == smaller_arm:
        return pairs > 0
    # Pairing drops the runs without a partner; two thirds bounds that loss.
    return pairs >= LEAST_PARTIAL_PAIRS and 3 * pairs >= 2 * smaller_arm


def _runs_by_unique_key(keys: Sequence[Hashable | None]) -> dict[Hashable, int]:
    counts = Counter(keys)
    return {key: run for run, key in enumerate(keys) if key is not None and counts[key] == 1}


def _without(arm: Sequence[Any], paired: set[int]) -> tuple[int, ...]:
    return tuple(run for run in range(len(arm)) if run not in paired)
