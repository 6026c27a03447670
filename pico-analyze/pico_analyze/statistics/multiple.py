"""Many numbers at once: Holm's adjustment, and max-t for maps whose cells share their runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_ARRANGEMENTS = 20_000
"""Sign flips or permutations up to which all are enumerated; beyond, `SAMPLED_ARRANGEMENTS` are
drawn."""
SAMPLED_ARRANGEMENTS = 9_999
_AT_ONCE = 1_000
_TIE = 1e-9  # statistics this close are equal: rounding must not decide


@dataclass(frozen=True)
class MaxT:
    """The max-t test of all cells of a map.

    Attributes:
        p: (cells,) two-sided p-values, adjusted for all cells; NaN where a value is missing.
        least: the least p-value that so many runs can give.
    """

    p: Any
    least: float


def holm(p: Sequence[float]) -> Any:
    """Adjust p-values so that the chance of any false rejection among them is at most alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * (len(values) - np.arange(len(values)))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def least_p(n: int, m: int, paired: bool) -> float:
    """Return the least p-value that max-t can give for n and m runs (for n pairs if `paired`)."""
    arrangements = _count(n, m, paired)
    if arrangements > MOST_ARRANGEMENTS:
        return 1 / (SAMPLED_ARRANGEMENTS + 1)
    mirrored = not paired and n == m  # swapping the arms gives the same |t|
    return (2 if mirrored else 1) / arrangements


def max_t(x: Any, y: Any, paired: bool, seed: int = 0) -> MaxT:
    """Test every cell for a difference between arms, adjusted for all cells by the largest |t|
    among them.

    Whole pairs change sign, or whole runs change arm, so that the dependence between cells that
    come from the same runs is kept. All arrangements are used up to `MOST_ARRANGEMENTS`, a random
    sample beyond.

    Args:
        x: (cells, n) and y: (cells, m), with at least two runs each; for `paired` column i of both
            is one pair.
        paired: flip the signs of pairs (Student's t) instead of permuting runs (Welch's t).
        seed: of the sample of arrangements.

    Source: Westfall & Young 1993, "Resampling-based multiple testing", sections 2.3 and 2.5;
    Nichols & Holmes 2002.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    complete = ~(np.isnan(x).any(axis=1) | np.isnan(y).any(axis=1))
    p = np.full(len(x), np.nan)
    n, m = x.shape[1], y.shape[1]
    if complete.any():
        values = (y - x)[complete] if paired else np.hstack([x, y])[complete]
        values = _scaled(values, centred=not paired)
        arranged = _sign_flips(n, seed) if paired else _permutations(n, m, seed)
        p[complete] = _adjusted(values, arranged, paired)
    return MaxT(p, least_p(n, m, paired))


def _adjusted(values: Any, arranged: Iterator[Any], paired: bool) -> Any:
    """Count the arrangements whose largest statistic reaches that of each cell; the first is the
    observed one."""
    statistic = _flipped if paired else _permuted
    reached, count, observed = np.zeros(len(values)), 0, None
    for block in arranged:
        found = statistic(values, block)
        observed = found[:, 0] if observed is None else observed
        largest = found.max(axis=0)
        reached += (largest >= observed[:, None] * (1 - _TIE)).sum(axis=1)
        count += block.shape[1]
    return reached / count


def _flipped(differences: Any, signs: Any) -> Any:
    """Return t^2 / (t^2 + n - 1) of the flipped differences, which ranks as |t| does and is finite
    without scatter."""
    with np.errstate(invalid="ignore"):
        found = ((differences @ signs) / signs.shape[0]) ** 2 / (differences**2).mean(axis=1)[
            :, None
        ]
    return np.nan_to_num(found)


def _permuted(values: Any, in_x: Any) -> Any:
    """Return t^2 / (t^2 + 1) of Welch's t where `in_x` (runs, arrangements) says which runs form
    the first arm."""
    n, m = int(in_x[:, 0].sum()), int((~in_x[:, 0]).sum())
    first, second = in_x.astype(float), (~in_x).astype(float)
    x, y = values @ first / n, values @ second / m
    of_x = (values**2 @ first / n - x**2) / (n - 1)
    of_y = (values**2 @ second / m - y**2) / (m - 1)
    apart, error = (y - x) ** 2, np.maximum(of_x, 0) + np.maximum(of_y, 0)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(apart / (apart + np.where(error < _TIE**2, 0, error)))


def _scaled(values: Any, centred: bool) -> Any:
    """Scale each cell to a largest value of 1, about its mean if `centred`; a cell without scatter
    becomes 0."""
    moved = values - values.mean(axis=1, keepdims=True) if centred else values
    size = np.abs(moved).max(axis=1, keepdims=True)
    negligible = size <= 1e-12 * np.abs(values).max(axis=1, keepdims=True)
    return np.divide(moved, size, out=np.zeros_like(moved), where=~negligible)


def _sign_flips(pairs: int, seed: int) -> Iterator[Any]:
    """Yield blocks (pairs, k) of signs, the observed ones first; the first pair keeps its sign,
    since |t| is even."""
    if _count(pairs, pairs, True) > MOST_ARRANGEMENTS:
        yield np.ones((pairs, 1))
        generator = np.random.default_rng(seed)
        yield from _blocks(
            generator.choice((-1.0, 1.0), size=(pairs, 1)) for _ in range(SAMPLED_ARRANGEMENTS)
        )
        return
    flips = itertools.product((1.0, -1.0), repeat=pairs - 1)
    yield from _blocks(np.array([[1.0], *([sign] for sign in flip)]) for flip in flips)


def _permutations(n: int, m: int, seed: int) -> Iterator[Any]:
    """Yield blocks (n + m, k) that say which runs form the first arm, the observed ones first."""
    if _count(n, m, False) > MOST_ARRANGEMENTS:
        generator = np.random.default_rng(seed)
        yield _chosen(range(n), n + m)
        yield from _blocks(
            _chosen(generator.permutation(n + m)[:n], n + m) for _ in range(SAMPLED_ARRANGEMENTS)
        )
        return
    yield from _blocks(_chosen(places, n + m) for places in itertools.combinations(range(n + m), n))


def _chosen(places: Any, runs: int) -> Any:
    chosen = np.zeros((runs, 1), dtype=bool)
    chosen[list(places)] = True
    return chosen


def _blocks(columns: Iterator[Any]) -> Iterator[Any]:
    while block := list(itertools.islice(columns, _AT_ONCE)):
        yield np.hstack(block)


def _count(n: int, m: int, paired: bool) -> int:
    return 2 ** (n - 1) if paired else math.comb(n + m, n)
