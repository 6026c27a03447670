"""Tests of many numbers at once: Holm's adjustment, and max-t for cells that share their runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_ARRANGEMENTS = 20_000
"""Most sign flips or permutations to enumerate; of more, `SAMPLED_ARRANGEMENTS` are drawn."""
SAMPLED_ARRANGEMENTS = 9_999
_ARRANGEMENTS_AT_ONCE = 1_000
_TIE = 1e-9  # statistics this close are equal: rounding must not decide


@dataclass(frozen=True)
class MaxT:
    """The max-t test of all cells of a map.

    Attributes:
        p: (cells,) two-sided p-values, adjusted for all cells; NaN where a value is missing.
        least: the least p-value that this number of runs can give.
    """

    p: Any
    least: float


def holm(p: Sequence[float]) -> Any:
    """Adjust p-values so that the chance of any false rejection among them is at most alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    count = len(values)
    hypotheses_left = count - np.arange(count)
    scaled = values[order] * hypotheses_left
    # A step-down test stops at its first failure, so no p-value may be below an earlier one.
    monotone = np.maximum.accumulate(scaled)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(monotone, 1)
    return adjusted


def least_p(n: int, m: int, paired: bool) -> float:
    """Return the least p-value that max-t can give for n and m runs (for n pairs if `paired`)."""
    arrangements = _count(n, m, paired)
    if arrangements > MOST_ARRANGEMENTS:
        return 1 / (SAMPLED_ARRANGEMENTS + 1)  # the observed arrangement is one of the sample
    mirrored = not paired and n == m  # swapping the arms gives the same |t|
    return (2 if mirrored else 1) / arrangements


def max_t(x: Any, y: Any, paired: bool, seed: int = 0) -> MaxT:
    """Test every cell for a difference between arms, adjusted for all cells by their largest |t|.

    All arrangements are used up to `MOST_ARRANGEMENTS`, a random sample beyond.

    Args:
        x: (cells, n) and y: (cells, m), with at least two runs each; for `paired` column i of both
            is one pair.
        paired: flip the signs of pairs (Student's t) instead of permuting runs (Welch's t).
        seed: seed of the sample of arrangements.

    Source: Westfall & Young 1993, "Resampling-based multiple testing", sections 2.3 and 2.5;
    Nichols & Holmes 2002.
    """
    x = np.asarray(x, dtype=float)
    y = np.asarray(y, dtype=float)
    # Whole pairs change sign, or whole runs change arm: cells that come from the same runs keep
    # their dependence, which makes max-t sharper than an adjustment for independent cells.
    n, m = x.shape[1], y.shape[1]
    all_runs = np.hstack([x, y])
    statistic: Callable[[Any, Any], Any]
    if paired:
        values = y - x
        statistic = _student_statistic
        arrangements = _sign_flips(n, seed)
    else:
        values = all_runs
        statistic = _welch_statistic
        arrangements = _permutations(n, m, seed)
    p = np.full(len(x), np.nan)
    complete = ~np.isnan(all_runs).any(axis=1)
    if complete.any():
        scaled = _scale(values[complete], centred=not paired)
        p[complete] = _adjusted_p(scaled, arrangements, statistic)
    return MaxT(p, least_p(n, m, paired))


def _adjusted_p(values: Any, arrangements: Iterator[Any], statistic: Callable[..., Any]) -> Any:
    """Compute the share of arrangements whose largest statistic reaches that of each cell."""
    reached = np.zeros(len(values))
    count = 0
    threshold = None
    for block in arrangements:
        by_cell = statistic(values, block)
        if threshold is None:
            observed = by_cell[:, 0]  # the first arrangement is the observed one
            threshold = observed[:, None] * (1 - _TIE)
        largest = by_cell.max(axis=0)
        reached += (largest >= threshold).sum(axis=1)
        count += block.shape[1]
    return reached / count


def _student_statistic(differences: Any, signs: Any) -> Any:
    """Compute t^2 / (t^2 + n - 1) of the flipped differences.

    It has the order of |t| and is finite without scatter.
    """
    mean = (differences @ signs) / signs.shape[0]
    mean_square = (differences**2).mean(axis=1)[:, None]
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(mean**2 / mean_square)


def _welch_statistic(values: Any, in_x: Any) -> Any:
    """Compute t^2 / (t^2 + 1) of Welch's t; `in_x` (runs, arrangements) marks the first arm.

    It has the order of |t| and is finite without scatter.
    """
    mean_x, error_x = _mean_and_error(values, in_x)
    mean_y, error_y = _mean_and_error(values, ~in_x)
    squared_difference = (mean_y - mean_x) ** 2
    error = error_x + error_y
    # Values are scaled to 1, so an error below this is the rounding of an arm without scatter.
    error = np.where(error < _TIE**2, 0, error)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(squared_difference / (squared_difference + error))


def _mean_and_error(values: Any, in_arm: Any) -> tuple[Any, Any]:
    """Compute the mean of an arm and the square of its standard error: (cells, arrangements)."""
    runs = int(in_arm[:, 0].sum())
    weights = in_arm.astype(float)
    mean = values @ weights / runs
    # The difference of two large numbers may round below 0; a variance may not.
    error = (values**2 @ weights / runs - mean**2) / (runs - 1)
    return mean, np.maximum(error, 0)


def _scale(values: Any, centred: bool) -> Any:
    """Scale each cell to a largest value of 1, about its mean if `centred`.

    Neither changes t, and both keep squares accurate. A cell without scatter becomes 0.
    """
    shifted = values - values.mean(axis=1, keepdims=True) if centred else values
    largest = np.abs(shifted).max(axis=1, keepdims=True)
    rounding = 1e-12 * np.abs(values).max(axis=1, keepdims=True)
    return np.divide(shifted, largest, out=np.zeros_like(shifted), where=largest > rounding)


def _sign_flips(pairs: int, seed: int) -> Iterator[Any]:
    """Yield blocks (pairs, k) of signs, the observed ones first."""
    if _count(pairs, pairs, True) > MOST_ARRANGEMENTS:
        yield np.ones((pairs, 1))
        yield from _blocks(_drawn_flips(pairs, seed))
        return
    # The first pair keeps its sign: flipping all signs gives the same |t|.
    flips = itertools.product((1.0,), *[(1.0, -1.0)] * (pairs - 1))
    yield from _blocks(np.array(flip)[:, None] for flip in flips)


def _drawn_flips(pairs: int, seed: int) -> Iterator[Any]:
    generator = np.random.default_rng(seed)
    for _ in range(SAMPLED_ARRANGEMENTS):
        yield generator.choice((-1.0, 1.0), size=(pairs, 1))


def _permutations(n: int, m: int, seed: int) -> Iterator[Any]:
    """Yield blocks (n + m, k) that mark the runs of the first arm, the observed ones first."""
    runs = n + m
    if _count(n, m, False) > MOST_ARRANGEMENTS:
        yield _mark(range(n), runs)
        yield from _blocks(_drawn_permutations(n, runs, seed))
        return
    first_arms = itertools.combinations(range(runs), n)
    yield from _blocks(_mark(first_arm, runs) for first_arm in first_arms)


def _drawn_permutations(n: int, runs: int, seed: int) -> Iterator[Any]:
    generator = np.random.default_rng(seed)
    for _ in range(SAMPLED_ARRANGEMENTS):
        yield _mark(generator.permutation(runs)[:n], runs)


def _mark(first_arm: Iterable[int], runs: int) -> Any:
    marks = np.zeros((runs, 1), dtype=bool)
    marks[list(first_arm)] = True
    return marks


def _blocks(columns: Iterator[Any]) -> Iterator[Any]:
    while block := list(itertools.islice(columns, _ARRANGEMENTS_AT_ONCE)):
        yield np.hstack(block)


def _count(n: int, m: int, paired: bool) -> int:
    if paired:
        return 2 ** (n - 1)  # the first pair keeps its sign
    return math.comb(n + m, n)
