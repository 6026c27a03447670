"""Multiple comparisons: Holm's adjustment, and max-t for maps whose cells share their runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_ARRANGEMENTS = 20_000
"""The most sign flips or permutations that are enumerated; of more, a sample is drawn."""
SAMPLED_ARRANGEMENTS = 9_999
_BLOCK = 1_000  # arrangements in memory at a time
_TIE = 1e-9  # statistics this close count as equal, so that rounding does not decide
_NO_SCATTER = 1e-12  # relative to the values of a cell


@dataclass(frozen=True)
class MaxT:
    """The max-t test of all cells of a map.

    Attributes:
        p: (cells,), two-sided p-values, adjusted for all cells; NaN if a value is missing.
        least: the least p-value that this number of runs can give.
    """

    p: Any
    least: float


def holm(p: Sequence[float]) -> Any:
    """Adjust p-values so that the chance of any false rejection is at most alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    hypotheses_left = len(values) - np.arange(len(values))
    scaled = values[order] * hypotheses_left
    adjusted = np.empty(len(values))
    # A larger p-value is never adjusted to a smaller one.
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def least_p(n: int, m: int, paired: bool) -> float:
    """Compute the least p-value that max-t can give for n and m runs (n pairs if `paired`)."""
    # The observed arrangement counts, so that p is never 0.
    arrangements = _count(n, m, paired)
    if arrangements > MOST_ARRANGEMENTS:
        return 1 / (SAMPLED_ARRANGEMENTS + 1)
    if not paired and n == m:
        return 2 / arrangements  # swapping the arms gives the same |t|
    return 1 / arrangements


def max_t(x: Any, y: Any, paired: bool, seed: int = 0) -> MaxT:
    """Test every cell for a difference between arms, adjusted by the largest |t| of all cells.

    Whole pairs change sign, or whole runs change arm, which preserves the dependence between cells
    of the same runs. Up to `MOST_ARRANGEMENTS` all arrangements are used, beyond that a random
    sample.

    Args:
        x: (cells, n), with at least two runs.
        y: (cells, m), with at least two runs; if `paired`, column i of both is one pair.
        paired: whether to flip the signs of pairs (Student's t) instead of permuting runs (Welch's
            t).
        seed: the seed of the sample of arrangements.

    Source: Westfall & Young 1993, "Resampling-based multiple testing", sections 2.3 and 2.5;
    Nichols & Holmes 2002.
    """
    x = np.asarray(x, dtype=float)
    y = np.asarray(y, dtype=float)
    _, n = x.shape
    _, m = y.shape
    runs = np.hstack([x, y])
    is_complete = ~np.isnan(runs).any(axis=1)
    p = np.full(len(runs), np.nan)
    least = least_p(n, m, paired)
    if not is_complete.any():
        return MaxT(p, least)
    if paired:
        differences = (y - x)[is_complete]
        flips = _sign_flips(n, seed)
        adjusted = _adjusted(_flipped, _scaled(differences), flips)
    else:
        runs = runs[is_complete]
        deviations = runs - runs.mean(axis=1, keepdims=True)
        permutations = _permutations(n, m, seed)
        adjusted = _adjusted(_permuted, _scaled(deviations, relative_to=runs), permutations)
    p[is_complete] = adjusted
    return MaxT(p, least)


def _adjusted(statistic: Callable[[Any, Any], Any], values: Any, blocks: Iterator[Any]) -> Any:
    """Compute the share of arrangements whose largest statistic reaches that of each cell.

    Args:
        statistic: a function of `values` and a block of arrangements; (cells, arrangements).
        values: (cells, runs).
        blocks: blocks of arrangements, (runs, arrangements); the first is the observed one.
    """
    observed = None
    reached, arrangements = np.zeros(len(values)), 0
    for block in blocks:
        t = statistic(values, block)
        if observed is None:
            observed = t[:, 0]
        # The largest statistic of all cells makes the p-values hold for all of them together.
        largest = t.max(axis=0)
        bound = observed[:, None] * (1 - _TIE)
        reached += (largest >= bound).sum(axis=1)
        arrangements += block.shape[1]
    return reached / arrangements


def _flipped(differences: Any, signs: Any) -> Any:
    """Compute t^2 / (t^2 + n - 1) of the differences with flipped signs.

    It ranks as |t| does, and is finite without scatter.
    """
    means = (differences @ signs) / signs.shape[0]
    mean_squares = (differences**2).mean(axis=1)  # not changed by the signs
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(means**2 / mean_squares[:, None])


def _permuted(values: Any, in_x: Any) -> Any:
    """Compute t^2 / (t^2 + 1) of Welch's t, which ranks as |t| does.

    `in_x` (runs, arrangements) says which runs form the first arm.
    """
    mean_x, variance_x = _moments(values, in_x)
    mean_y, variance_y = _moments(values, ~in_x)
    difference = (mean_y - mean_x) ** 2
    variance = variance_x + variance_y
    variance = np.where(variance < _TIE**2, 0, variance)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(difference / (difference + variance))


def _moments(values: Any, is_in: Any) -> tuple[Any, Any]:
    """Compute the mean of the chosen runs and the variance of that mean, for all arrangements."""
    n = int(is_in[:, 0].sum())
    weights = is_in.astype(float)
    mean = values @ weights / n
    variance = (values**2 @ weights / n - mean**2) / (n - 1)
    return mean, np.maximum(variance, 0)  # cancellation can make it negative


def _scaled(values: Any, relative_to: Any = None) -> Any:
    """Scale each cell to a largest magnitude of 1.

    A cell becomes 0 if its values are only rounding, compared with those of `relative_to`.
    """
    reference = values if relative_to is None else relative_to
    size = np.abs(values).max(axis=1, keepdims=True)
    is_rounding = size <= _NO_SCATTER * np.abs(reference).max(axis=1, keepdims=True)
    return np.divide(values, size, out=np.zeros_like(values), where=~is_rounding)


def _sign_flips(pairs: int, seed: int) -> Iterator[Any]:
    """Yield blocks (pairs, k) of signs, the observed ones first."""
    count = _count(pairs, pairs, True)
    if count <= MOST_ARRANGEMENTS:
        # |t| is even, so that the first pair may keep its sign.
        signs = [(1.0,)] + [(1.0, -1.0)] * (pairs - 1)
        yield from _blocks(map(np.array, itertools.product(*signs)))
        return
    yield np.ones((pairs, 1))
    generator = np.random.default_rng(seed)
    sampled = range(SAMPLED_ARRANGEMENTS)
    yield from _blocks(generator.choice((-1.0, 1.0), size=pairs) for _ in sampled)


def _permutations(n: int, m: int, seed: int) -> Iterator[Any]:
    """Yield blocks (n + m, k) that say which runs form the first arm, the observed ones first."""
    runs = n + m
    count = _count(n, m, False)
    if count <= MOST_ARRANGEMENTS:
        first_arms = itertools.combinations(range(runs), n)
        yield from _blocks(_mask(first_arm, runs) for first_arm in first_arms)
        return
    observed = _mask(range(n), runs)
    yield observed[:, None]
    generator = np.random.default_rng(seed)
    sampled = (generator.permutation(runs)[:n] for _ in range(SAMPLED_ARRANGEMENTS))
    yield from _blocks(_mask(first_arm, runs) for first_arm in sampled)


def _mask(indices: Any, runs: int) -> Any:
    is_chosen = np.zeros(runs, dtype=bool)
    is_chosen[list(indices)] = True
    return is_chosen


def _blocks(arrangements: Iterator[Any]) -> Iterator[Any]:
    while block := list(itertools.islice(arrangements, _BLOCK)):
        yield np.column_stack(block)


def _count(n: int, m: int, paired: bool) -> int:
    """Count the arrangements, those that differ only in the sign of all pairs once."""
    return 2 ** (n - 1) if paired else math.comb(n + m, n)
