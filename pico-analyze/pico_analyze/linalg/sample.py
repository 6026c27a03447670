"""Observations in rows: centring, Gram matrices, bases, distances, each made once and kept.

Shapes: a sample is (rows, width), its core (rows, k).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from pico_analyze.linalg.decompositions import REAL, Basis, basis
from pico_analyze.linalg.matrix import FactoredMatrix, Matrix, normalized, storage_error


def _centred(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(dim=0)
    rounding = x.shape[0] * torch.finfo(REAL).eps * x.abs().amax(dim=0)
    return centred.mul_(centred.abs().amax(dim=0) > rounding)


@dataclass(frozen=True, eq=False)
class Sample:
    """Observations in rows, columns centred. What comparisons need of one side is made when asked
    for, and kept.

    `positions` rows, one after the other, are of one sequence (a probe row) and depend on each
    other. Extreme entries are scaled by a power of two, on which no comparison of samples depends.
    """

    matrix: Matrix  # (rows, width), as stored
    positions: int = 1
    _kept: dict[tuple[str, float], torch.Tensor] = field(default_factory=dict, repr=False)
    _numbers: dict[str, float] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, matrix: Matrix, positions: int = 1) -> Sample:
        """The rows of a matrix."""
        return cls(matrix, positions)

    @property
    def rows(self) -> int:
        return self.matrix.shape[0]

    @property
    def sequences(self) -> int:
        """How many sequences the rows are of."""
        return self.rows // self.positions

    @cached_property
    def _normalized(self) -> tuple[Matrix, int]:
        return normalized(self.matrix)

    @property
    def _dense(self) -> torch.Tensor:
        matrix = self._normalized[0]
        return matrix.dense() if isinstance(matrix, FactoredMatrix) else matrix

    @cached_property
    def x(self) -> torch.Tensor:
        """(rows, width) float64, each column of mean 0; exactly 0 where it varies by no more than
        its mean rounds."""
        return _centred(self._dense)

    @property
    def mean(self) -> torch.Tensor:
        """(width,): what was taken off."""
        return self._dense.mean(dim=0)

    @cached_property
    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, k) and (k, width), orthonormal rows, whose product x is.

        Of a product left @ right with right^T = Q R, the narrow left @ R^T has the same rows up to
        the rotation Q.
        """
        matrix = self._normalized[0]
        assert isinstance(matrix, FactoredMatrix)
        turn, triangle = torch.linalg.qr(matrix.right.mT)  # (width, k), (k, r)
        return _centred(matrix.scale * matrix.left @ triangle.mT), turn.mT

    @cached_property
    def core(self) -> torch.Tensor:
        """(rows, k): the sample up to a rotation of its columns, as narrow as it can be had."""
        return self._factors[0] if isinstance(self.matrix, FactoredMatrix) else self.x

    @cached_property
    def noise(self) -> float:
        """The largest 2-norm of what rounding to the stored dtype can have added, in the units of
        `x`."""
        return storage_error(self.matrix, unit=self._normalized[1])

    @cached_property
    def diagonal(self) -> torch.Tensor:
        """(rows,): diagonal of the Gram matrix K = x x^T."""
        return self.core.square().sum(dim=1)

    @cached_property
    def gram(self) -> torch.Tensor:
        """(rows, rows): K = x x^T."""
        return self.core @ self.core.T

    @cached_property
    def covariance(self) -> torch.Tensor:
        """(k, k): x^T x, up to the rotation of the core."""
        return self.core.T @ self.core

    @cached_property
    def self_cross(self) -> float:
        return float((self.gram if _wide(self) else self.covariance).square().sum())

    @property
    def rounding(self) -> float:
        """At or below this a sum of terms as large as `self_cross` counts as zero."""
        return max(self.matrix.shape) * torch.finfo(REAL).eps * self.self_cross

    @cached_property
    def basis(self) -> Basis:
        """Directions that are larger than what rounding, of storage or of the decomposition, can
        make of nothing."""
        found = basis(
            self.core, self.gram if _wide(self) else self.covariance, self.matrix.dtype, self.noise
        )
        return (
            found._replace(right=found.right @ self._factors[1])
            if isinstance(self.matrix, FactoredMatrix)
            else found
        )

    @cached_property
    def frame(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, r) and (r, width), whose product x is: the basis's directions, made orthonormal,
        and loadings."""
        left, values, right = self.basis
        directions, triangle = torch.linalg.qr(left)
        return directions, triangle @ (values[:, None] * right)

    @cached_property
    def with_sequences(self) -> torch.Tensor:
        """(rows, sequences): inner products of each row with the sum of the rows of each
        sequence."""
        return self.core @ self._by_sequence.sum(dim=1).T

    @cached_property
    def within_sequences(self) -> torch.Tensor:
        """(sequences, positions, positions): the Gram matrix of the rows of each sequence."""
        return self._by_sequence @ self._by_sequence.mT

    @property
    def _by_sequence(self) -> torch.Tensor:
        return self.core.unflatten(0, (self.sequences, self.positions))

    @property
    def angle_error(self) -> float:
        """By how much rounding in float64 can have turned the basis's directions, in radians."""
        values = self.basis.values
        return self.rows * torch.finfo(REAL).eps * float(values[0] / values[-1])

    def is_unique(self, k: int) -> bool:
        """Whether the `k` leading directions span one subspace: not where two of one size lie at
        the limit."""
        squares = self.basis.values.square()
        rounding = 8 * math.sqrt(max(self.core.shape)) * torch.finfo(REAL).eps * squares[0]
        return k == len(squares) or bool(squares[k - 1] - squares[k] > rounding)

    @cached_property
    def squared_distances(self) -> torch.Tensor:
        """(rows, rows): squared Euclidean distances between rows."""
        squared = self.diagonal[:, None] + self.diagonal - 2 * self.gram
        return squared.clamp(min=0).fill_diagonal_(0)

    @cached_property
    def median_distance(self) -> float:
        """Median of the distances between different rows; 0 for fewer than two."""
        pairs = torch.triu_indices(self.rows, self.rows, 1)
        distances = self.squared_distances[pairs[0], pairs[1]].sqrt()
        return float(np.median(distances.numpy())) if len(distances) else 0.0

    def rbf(self, bandwidth: float) -> torch.Tensor:
        """(rows, rows): centred Gram matrix of exp(-d^2 / (2 s^2)), s the `bandwidth` times the
        median distance."""
        if ("rbf", bandwidth) not in self._kept:
            kernel = torch.exp(
                self.squared_distances / (-2 * (bandwidth * self.median_distance) ** 2)
            )
            means = kernel.mean(dim=0)
            self._kept["rbf", bandwidth] = kernel - means - means[:, None] + means.mean()
        return self._kept["rbf", bandwidth]

    def once(self, name: str, make: Callable[[Sample], float]) -> float:
        """`make` of this sample, computed once; it must not depend on the order of sequences."""
        if name not in self._numbers:
            self._numbers[name] = make(self)
        return self._numbers[name]

    def neighbours(self, k: int) -> torch.Tensor:
        """(rows, rows): how probable it is that column j is among the k other rows nearest to row
        i.

        1 or 0, but for rows that tie for the last places: these share them, as if each order of
        them were as probable.
        """
        if ("neighbours", k) not in self._kept:
            others = self.squared_distances.clone().fill_diagonal_(torch.inf)
            last = others.kthvalue(k, dim=1, keepdim=True).values
            resolution = self._distance_resolution
            nearer, tied = others < last - resolution, (others - last).abs() <= resolution
            share = (k - nearer.sum(dim=1)).to(REAL) / tied.sum(dim=1)
            self._kept["neighbours", k] = nearer.to(REAL) + tied * share[:, None]
        return self._kept["neighbours", k]

    @property
    def _distance_resolution(self) -> torch.Tensor:
        """(rows, 1): squared distances to a row that differ by no more than this are equal but for
        rounding."""
        size = self.diagonal[:, None] + self.diagonal.max()
        return 4 * math.sqrt(max(self.core.shape)) * torch.finfo(REAL).eps * size

    @cached_property
    def classes(self) -> torch.Tensor:
        """(rows,) int64: a number for each row, the same for rows that are equal as they were
        stored."""
        matrix = self.matrix.left if isinstance(self.matrix, FactoredMatrix) else self.matrix
        return torch.unique(matrix.to(REAL), dim=0, return_inverse=True)[1]

    @cached_property
    def distinct(self) -> int:
        """How many different rows there are."""
        return int(self.classes.max()) + 1


def distinct_rows(a: Sample, b: Sample) -> int:
    """How many different pairs of corresponding rows two samples have: they span one dimension
    fewer at most."""
    return len(torch.unique(a.classes * a.rows + b.classes))


def fills_all_rows(directions: int, a: Sample, b: Sample) -> bool:
    """Whether so many directions are all that the distinct rows of two samples can have."""
    fewest = max(a.distinct, b.distinct)  # pairs are at least as many
    return directions >= fewest - 1 and directions >= distinct_rows(a, b) - 1


def cross(a: Sample, b: Sample) -> float:
    """tr(K L) = ||a^T b||_F^2 for K = a a^T, L = b b^T, by whichever of the two forms needs the
    smaller matrices."""
    if a is b:
        return a.self_cross
    if _wide(a) or _wide(b):
        return float((a.gram * b.gram).sum())
    return float((a.core.T @ b.core).square().sum())


def _wide(sample: Sample) -> bool:
    return sample.rows < sample.core.shape[1]
