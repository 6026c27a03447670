"""Permutation nulls: similarities of samples whose sequences do not belong together."""

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

_TIE = 1e-12
"""Draws that fall short of the observed similarity by this share of it count as equal: rounding."""


class Null(NamedTuple):
    """The mean and standard deviation over permutations, and the p-value of a similarity.

    All are None if a similarity has no value.
    """

    mean: float | None
    sd: float | None
    p: float | None


def permutation_null(
    fn: Callable[[Sample, Sample], Outcome], x: Sample, y: Sample, draws: int, seed: int
) -> Null:
    """Estimate the distribution of a similarity if the sequences of y are permuted at random.

    Sequences are exchangeable; rows of one sequence depend on each other, stay together and keep
    their order. p = (1 + the number of draws that reach the observed value) / (1 + draws), which is
    never 0. `sd` divides by draws - 1. All are None if the similarity has no value, or if there is
    only one sequence. Source: Phipson & Smyth 2010, "Permutation p-values should never be zero".

    Raises:
        ValueError: fewer than 2 draws.
    """
    if draws < 2:
        raise ValueError(f"a permutation null needs at least 2 draws but is given {draws}")
    observed = fn(x, y).value
    if observed is None or y.sequences < 2:
        return Null(None, None, None)
    values = []
    # A separate generator does not disturb the global one, and is safe in threads.
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        sequence_order = torch.randperm(y.sequences, generator=generator)
        value = fn(x, _reordered(y, sequence_order)).value
        if value is None:
            return Null(None, None, None)
        values.append(value)
    # An order that changes nothing gives the observed value again, up to rounding.
    as_large = sum(value >= observed - _TIE * abs(observed) for value in values)
    p = (1 + as_large) / (1 + draws)
    return Null(statistics.fmean(values), statistics.stdev(values), p)


def seed_of(*names: str | int | None) -> int:
    """Derive a seed from what is compared (run, module, head, step).

    It does not depend on the order of work or on the machine.
    """
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes seeds below 2^63


def _reordered(sample: Sample, sequence_order: torch.Tensor) -> Sample:
    first_rows = sequence_order[:, None] * sample.positions
    order = (first_rows + torch.arange(sample.positions)).flatten()
    return _Reordered(sample.matrix, sample.positions, original=sample, order=order)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Reordered(Sample):
    """The rows of `original` in another order.

    Derived matrices of the original are reordered, which costs far less than to compute them anew.
    """

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
