"""The choice between paired and unpaired statistics, from the seeds alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

LEAST_PARTIAL_PAIRS = 3
"""The fewest pairs if some runs of the smaller arm have no partner."""


@dataclass(frozen=True)
class Pairing:
    """The pairs that the runs of two arms form.

    Attributes:
        pairs: (index in the first arm, index in the second), in the order of the first arm.
        matched: the number of runs that have a partner, even if too few to pair the arms.
        unpaired: for each arm, the indices of the runs that have no partner.
    """

    pairs: tuple[tuple[int, int], ...]
    matched: int
    unpaired: tuple[tuple[int, ...], tuple[int, ...]]


Keys = Sequence[Hashable | None]
"""The key of each run of an arm, None if it is unknown."""


def choose_pairs(first: Keys, second: Keys) -> Pairing:
    """Pair the runs of two arms that have the same key (their seeds), if there are enough pairs.

    Enough are all runs of the smaller arm, or at least three pairs and two thirds of the smaller
    arm; otherwise `pairs` is empty. A key has no partner if it is unknown (None) or occurs twice in
    an arm. Values play no part, so that the choice cannot favour a result.
    """
    index_in_first = _unique_keys(first)
    index_in_second = _unique_keys(second)
    # A repeated seed does not say which of its runs belong together.
    common = [key for key in index_in_first if key in index_in_second]
    pairs = tuple((index_in_first[key], index_in_second[key]) for key in common)
    paired_in_first = {i for i, _ in pairs}
    paired_in_second = {j for _, j in pairs}
    unpaired = (
        tuple(i for i in range(len(first)) if i not in paired_in_first),
        tuple(j for j in range(len(second)) if j not in paired_in_second),
    )
    smaller_arm = min(len(first), len(second))
    if not _are_enough(len(pairs), smaller_arm):
        return Pairing((), len(pairs), unpaired)
    return Pairing(pairs, len(pairs), unpaired)


def _are_enough(pairs: int, smaller_arm: int) -> bool:
    if pairs == smaller_arm:
        return pairs > 0
    return pairs >= LEAST_PARTIAL_PAIRS and 3 * pairs >= 2 * smaller_arm


def _unique_keys(keys: Keys) -> dict[Hashable, int]:
    """Return key -> index for the known keys that occur once, in order."""
    count = Counter(keys)
    return {key: i for i, key in enumerate(keys) if key is not None and count[key] == 1}
