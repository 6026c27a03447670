"""What a similarity is between samples whose sequences do not belong together."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from pico_analyze.linalg.decompositions import Basis
from pico_analyze.linalg.sample import Sample
from pico_analyze.metrics.single import Outcome


class Null(NamedTuple):
    """Mean and standard deviation over the permutations, and how probable a similarity as large is
    under them."""

    mean: float | None
    sd: float | None
    p: float | None


def permutation_null(
    fn: Callable[[Sample, Sample], Outcome], x: Sample, y: Sample, draws: int, seed: int
) -> Null:
    """A similarity's distribution where the sequences of y are permuted, each order as probable as
    any other.

    Sequences are what is exchangeable: rows of one sequence depend on each other, stay together and
    keep their order. p = (1 + how many of the draws are at least what is observed) / (1 + draws):
    never 0. `sd` divides by draws - 1. All None where the similarity has no value, or where there
    is a single sequence. Gram matrices, distances and bases are reordered, not made again. Source:
    Phipson & Smyth 2010, "Permutation p-values should never be zero".

    Raises:
        ValueError: fewer than 2 draws.
    """
    if draws < 2:
        raise ValueError(f"a permutation null needs at least 2 draws but is given {draws}")
    observed = fn(x, y).value
    if observed is None or y.sequences < 2:
        return Null(None, None, None)
    draw = torch.Generator().manual_seed(seed)
    orders = (
        _of_rows(torch.randperm(y.sequences, generator=draw), y.positions) for _ in range(draws)
    )
    values = [value for order in orders if (value := fn(x, _reordered(y, order)).value) is not None]
    if len(values) < draws:
        return Null(None, None, None)
    as_large = sum(value >= observed - 1e-12 * abs(observed) for value in values)
    return Null(statistics.fmean(values), statistics.stdev(values), (1 + as_large) / (1 + draws))


def seed_of(*names: str | int | None) -> int:
    """A seed from what is compared (run, module, head, step): the same in any order of work and on
    any machine."""
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "big") >> 1


def _of_rows(order: torch.Tensor, positions: int) -> torch.Tensor:
    """The order of rows in which sequences of `positions` rows each come in `order`."""
    return (order[:, None] * positions + torch.arange(positions)).flatten()


def _reordered(sample: Sample, order: torch.Tensor) -> Sample:
    return _Reordered(sample.matrix, sample.positions, original=sample, order=order)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Reordered(Sample):
    """The rows of `original` in another order, with what was made of them."""

    original: Sample
    order: torch.Tensor

    def _square(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix[self.order[:, None], self.order]

    @cached_property
    def x(self) -> torch.Tensor:
        return self.original.x[self.order]

    @cached_property
    def core(self) -> torch.Tensor:
        return self.original.core[self.order]

    @cached_property
    def classes(self) -> torch.Tensor:
        return self.original.classes[self.order]

    @cached_property
    def diagonal(self) -> torch.Tensor:
        return self.original.diagonal[self.order]

    @cached_property
    def gram(self) -> torch.Tensor:
        return self._square(self.original.gram)

    @property
    def covariance(self) -> torch.Tensor:
        return self.original.covariance

    @cached_property
    def self_cross(self) -> float:
        return self.original.self_cross

    @cached_property
    def basis(self) -> Basis:
        return self.original.basis._replace(left=self.original.basis.left[self.order])

    @property
    def _sequence_order(self) -> torch.Tensor:
        return self.order[:: self.positions] // self.positions

    @cached_property
    def with_sequences(self) -> torch.Tensor:
        return self.original.with_sequences[self.order[:, None], self._sequence_order]

    @cached_property
    def within_sequences(self) -> torch.Tensor:
        return self.original.within_sequences[self._sequence_order]

    @property
    def distinct(self) -> int:
        return self.original.distinct

    def once(self, name: str, make: Callable[[Sample], float]) -> float:
        return self.original.once(name, make)

    @cached_property
    def frame(self) -> tuple[torch.Tensor, torch.Tensor]:
        directions, loadings = self.original.frame
        return directions[self.order], loadings

    @cached_property
    def squared_distances(self) -> torch.Tensor:
        return self._square(self.original.squared_distances)

    @cached_property
    def median_distance(self) -> float:
        return self.original.median_distance

    def rbf(self, bandwidth: float) -> torch.Tensor:
        return self._square(self.original.rbf(bandwidth))

    def neighbours(self, k: int) -> torch.Tensor:
        return self._square(self.original.neighbours(k))
