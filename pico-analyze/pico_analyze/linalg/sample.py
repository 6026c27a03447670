"""Samples: observations in rows, with what comparisons need of them, each computed once.

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
    """Subtract the mean of each column; columns that vary only by its rounding become exactly 0."""
    centred = x - x.mean(dim=0)
    # Of a constant column only the rounding of its mean is left, which a comparison that ignores
    # scale would take for a direction.
    rounding = x.shape[0] * torch.finfo(REAL).eps * x.abs().amax(dim=0)
    return centred.mul_(centred.abs().amax(dim=0) > rounding)


@dataclass(frozen=True, eq=False)
class Sample:
    """Observations in rows, with columns centred.

    Derived matrices are computed when they are first used, and cached. Extreme entries are scaled
    by a power of two, on which no comparison of samples depends.

    Attributes:
        matrix: (rows, width), as stored.
        positions: each `positions` consecutive rows belong to one sequence (a probe row) and depend
            on each other.
    """

    matrix: Matrix
    positions: int = 1
    _matrices: dict[tuple[str, float], torch.Tensor] = field(default_factory=dict, repr=False)
    _numbers: dict[str, float] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, matrix: Matrix, positions: int = 1) -> Sample:
        """Build the sample of a matrix's rows."""
        return cls(matrix, positions)

    @property
    def rows(self) -> int:
        return self.matrix.shape[0]

    @property
    def sequences(self) -> int:
        """The number of sequences that the rows belong to."""
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
        """The centred rows, (rows, width) float64.

        A column is exactly 0 if it varies by no more than the rounding of its mean.
        """
        return _centred(self._dense)

    @property
    def mean(self) -> torch.Tensor:
        """The column means that centring subtracts, (width,)."""
        return self._dense.mean(dim=0)

    @cached_property
    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The core (rows, k) and orthonormal rows (k, width) whose product is x.

        With right^T = Q R the narrow left @ R^T has the rows of left @ right, up to the rotation Q.
        """
        matrix = self._normalized[0]
        assert isinstance(matrix, FactoredMatrix)
        rotation, triangle = torch.linalg.qr(matrix.right.mT)  # (width, k), (k, r)
        return _centred(matrix.scale * matrix.left @ triangle.mT), rotation.mT

    @cached_property
    def core(self) -> torch.Tensor:
        """The sample up to a rotation of its columns, as narrow as possible, (rows, k)."""
        # Gram matrices, distances and angles do not depend on a rotation of the columns.
        return self._factors[0] if isinstance(self.matrix, FactoredMatrix) else self.x

    @cached_property
    def noise(self) -> float:
        """A bound of the 2-norm of what rounding to the stored dtype added, in the units of `x`."""
        return storage_error(self.matrix, unit=self._normalized[1])

    @cached_property
    def diagonal(self) -> torch.Tensor:
        """The diagonal of the Gram matrix K = x x^T, (rows,)."""
        return self.core.square().sum(dim=1)

    @cached_property
    def gram(self) -> torch.Tensor:
        """The Gram matrix K = x x^T, (rows, rows)."""
        return self.core @ self.core.T

    @cached_property
    def covariance(self) -> torch.Tensor:
        """x^T x up to the rotation of the core, (k, k)."""
        return self.core.T @ self.core

    @property
    def _smaller_gram(self) -> torch.Tensor:
        return self.gram if _is_wide(self) else self.covariance

    @cached_property
    def self_cross(self) -> float:
        """tr(K K), the squared norm of the Gram matrix."""
        # ||x x^T||_F = ||x^T x||_F
        return float(self._smaller_gram.square().sum())

    @property
    def rounding(self) -> float:
        """The value up to which a sum of terms as large as `self_cross` counts as zero."""
        return max(self.matrix.shape) * torch.finfo(REAL).eps * self.self_cross

    @cached_property
    def basis(self) -> Basis:
        """The directions that stand out from rounding, both of storage and of the decomposition."""
        of_core = basis(self.core, self._smaller_gram, self.matrix.dtype, self.noise)
        if not isinstance(self.matrix, FactoredMatrix):
            return of_core
        return of_core._replace(right=of_core.right @ self._factors[1])

    @cached_property
    def frame(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Directions (rows, r) and loadings (r, width) whose product is x.

        The directions are those of the basis, orthonormal up to rounding in float64.
        """
        left, values, right = self.basis
        # Directions from a Gram matrix are orthogonal only up to GRAM_ERROR; QR restores them.
        directions, triangle = torch.linalg.qr(left)
        return directions, triangle @ (values[:, None] * right)

    @cached_property
    def with_sequences(self) -> torch.Tensor:
        """Inner products of each row with the sum of each sequence's rows, (rows, sequences)."""
        return self.core @ self._by_sequence.sum(dim=1).T

    @cached_property
    def within_sequences(self) -> torch.Tensor:
        """The Gram matrix of the rows of each sequence, (sequences, positions, positions)."""
        return self._by_sequence @ self._by_sequence.mT

    @property
    def _by_sequence(self) -> torch.Tensor:
        return self.core.unflatten(0, (self.sequences, self.positions))

    @property
    def angle_error(self) -> float:
        """The angle by which rounding in float64 can have turned the basis, in radians."""
        values = self.basis.values
        return self.rows * torch.finfo(REAL).eps * float(values[0] / values[-1])

    def is_unique(self, k: int) -> bool:
        """Return whether the `k` leading directions span one subspace.

        They do not if directions k and k + 1 are equally large, so that either could be the k-th.
        """
        # Compared as squares, since those are what an eigendecomposition rounds.
        squares = self.basis.values.square()
        rounding = 8 * math.sqrt(max(self.core.shape)) * torch.finfo(REAL).eps * squares[0]
        return k == len(squares) or bool(squares[k - 1] - squares[k] > rounding)

    @cached_property
    def squared_distances(self) -> torch.Tensor:
        """Squared Euclidean distances between rows, (rows, rows)."""
        squared = self.diagonal[:, None] + self.diagonal - 2 * self.gram
        # The difference of large terms may round below 0.
        return squared.clamp(min=0).fill_diagonal_(0)

    @cached_property
    def median_distance(self) -> float:
        """The median of the distances between different rows; 0 for fewer than two rows."""
        pairs = torch.triu_indices(self.rows, self.rows, 1)
        distances = self.squared_distances[pairs[0], pairs[1]].sqrt()
        # torch.median would take the lower of two middle values; numpy averages them.
        return float(np.median(distances.numpy())) if len(distances) else 0.0

    def rbf(self, bandwidth: float) -> torch.Tensor:
        """Compute the centred Gram matrix of the kernel exp(-d^2 / (2 s^2)), (rows, rows).

        s is `bandwidth` times the median distance.
        """
        key = ("rbf", bandwidth)
        if key not in self._matrices:
            width = bandwidth * self.median_distance
            exponent = self.squared_distances / (-2 * width**2)
            kernel = torch.exp(exponent)
            means = kernel.mean(dim=0)
            # H K H, without the centring matrix H
            centred = kernel - means - means[:, None] + means.mean()
            self._matrices[key] = centred
        return self._matrices[key]

    def once(self, name: str, make: Callable[[Sample], float]) -> float:
        """Compute `make` of this sample once; it must not depend on the order of sequences."""
        if name not in self._numbers:
            self._numbers[name] = make(self)
        return self._numbers[name]

    def neighbours(self, k: int) -> torch.Tensor:
        """Compute the probability that row j is among the k nearest other rows of i, (rows, rows).

        It is 1 or 0 except for rows that tie for the last places: these share the places, as if
        each order of them were equally probable.
        """
        key = ("neighbours", k)
        if key not in self._matrices:
            self._matrices[key] = self._nearest(k)
        return self._matrices[key]

    def _nearest(self, k: int) -> torch.Tensor:
        # A row is not its own neighbour.
        others = self.squared_distances.clone().fill_diagonal_(torch.inf)
        last = others.kthvalue(k, dim=1, keepdim=True).values
        resolution = self._distance_resolution
        # Distances that differ by less than rounding have no order.
        nearer = others < last - resolution
        tied = (others - last).abs() <= resolution
        places_left = k - nearer.sum(dim=1)
        candidates = tied.sum(dim=1)
        share = places_left.to(REAL) / candidates
        return nearer.to(REAL) + tied * share[:, None]

    @property
    def _distance_resolution(self) -> torch.Tensor:
        """The largest difference of squared distances to a row that is only rounding, (rows, 1)."""
        size = self.diagonal[:, None] + self.diagonal.max()
        return 4 * math.sqrt(max(self.core.shape)) * torch.finfo(REAL).eps * size

    @cached_property
    def classes(self) -> torch.Tensor:
        """A number for each row, equal for rows with equal stored values, (rows,) int64."""
        # Rows of a product are equal if the rows of its left factor are.
        matrix = self.matrix.left if isinstance(self.matrix, FactoredMatrix) else self.matrix
        return torch.unique(matrix.to(REAL), dim=0, return_inverse=True)[1]

    @cached_property
    def distinct(self) -> int:
        """The number of different rows."""
        return int(self.classes.max()) + 1


def distinct_rows(a: Sample, b: Sample) -> int:
    """Count the different pairs of corresponding rows of two samples.

    n distinct pairs of centred rows span at most n - 1 dimensions.
    """
    # A pair of class numbers as one integer
    return len(torch.unique(a.classes * a.rows + b.classes))


def fills_all_rows(directions: int, a: Sample, b: Sample) -> bool:
    """Return whether this many directions are all that the rows of two samples can span."""
    at_least = max(a.distinct, b.distinct)  # cheap and cached: there are at least as many pairs
    return directions >= at_least - 1 and directions >= distinct_rows(a, b) - 1


def cross(a: Sample, b: Sample) -> float:
    """Compute tr(K L) = ||a^T b||_F^2 for K = a a^T and L = b b^T, by the cheaper form."""
    if a is b:
        return a.self_cross
    if _is_wide(a) or _is_wide(b):
        return float((a.gram * b.gram).sum())
    return float((a.core.T @ b.core).square().sum())


def _is_wide(sample: Sample) -> bool:
    return sample.rows < sample.core.shape[1]
