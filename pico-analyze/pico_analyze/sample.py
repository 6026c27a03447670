"""Observations in rows: centring, Gram matrices, bases, distances, each made once and kept.

Shapes: a sample is (rows, width), its core (rows, k).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from pico_analyze.decompositions import REAL, Basis, basis
from pico_analyze.linalg import Matrix, Product


def _centred(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(dim=0)
    rounding = x.shape[0] * torch.finfo(REAL).eps * x.abs().amax(dim=0)
    return centred.mul_(centred.abs().amax(dim=0) > rounding)


@dataclass(frozen=True, eq=False)
class Sample:
    """Observations in rows, columns centred. What comparisons need of one side is made when asked for, and kept."""

    matrix: Matrix  # (rows, width), as stored
    _kept: dict[tuple[str, float], torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, matrix: Matrix) -> Sample:
        """The rows of a matrix."""
        return cls(matrix)

    @property
    def rows(self) -> int:
        return self.matrix.shape[0]

    @property
    def _dense(self) -> torch.Tensor:
        return self.matrix.dense() if isinstance(self.matrix, Product) else self.matrix.to(REAL)

    @cached_property
    def x(self) -> torch.Tensor:
        """(rows, width) float64, each column of mean 0; exactly 0 where it varies by no more than its mean rounds."""
        return _centred(self._dense)

    @property
    def mean(self) -> torch.Tensor:
        """(width,): what was taken off."""
        return self._dense.mean(dim=0)

    @cached_property
    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, k) and (k, width), orthonormal rows, whose product x is.

        Of a product left @ right with right^T = Q R, the narrow left @ R^T has the same rows up to the rotation Q.
        """
        assert isinstance(self.matrix, Product)
        turn, triangle = torch.linalg.qr(self.matrix.right.to(REAL).mT)  # (width, k), (k, r)
        return _centred(self.matrix.left.to(REAL) @ triangle.mT), turn.mT

    @cached_property
    def core(self) -> torch.Tensor:
        """(rows, k): the sample up to a rotation of its columns, as narrow as it can be had."""
        return self._factors[0] if isinstance(self.matrix, Product) else self.x

    @property
    def noise(self) -> float:
        """Largest Euclidean norm of what rounding to the stored dtype can have added; factors round within a rank."""
        if isinstance(self.matrix, Product):
            return 0.0
        return torch.finfo(self.matrix.dtype).eps / 2 * float(torch.linalg.vector_norm(self.matrix, dtype=REAL))

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
        """Directions that are larger than what rounding, of storage or of the decomposition, can make of nothing."""
        found = basis(self.core, self.gram if _wide(self) else self.covariance, self.matrix.dtype, self.noise)
        return found._replace(right=found.right @ self._factors[1]) if isinstance(self.matrix, Product) else found

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
        """(rows, rows): centred Gram matrix of exp(-d^2 / (2 s^2)), s the `bandwidth` times the median distance."""
        if ("rbf", bandwidth) not in self._kept:
            kernel = torch.exp(self.squared_distances / (-2 * (bandwidth * self.median_distance) ** 2))
            means = kernel.mean(dim=0)
            self._kept["rbf", bandwidth] = kernel - means - means[:, None] + means.mean()
        return self._kept["rbf", bandwidth]

    def neighbours(self, k: int) -> torch.Tensor:
        """(rows, rows) bool: whether column j is among the k other rows nearest to row i."""
        if ("neighbours", k) not in self._kept:
            others = self.squared_distances.clone().fill_diagonal_(torch.inf)
            nearest = others.topk(k, dim=1, largest=False, sorted=False).indices
            self._kept["neighbours", k] = torch.zeros_like(others, dtype=torch.bool).scatter_(1, nearest, True)
        return self._kept["neighbours", k]


def cross(a: Sample, b: Sample) -> float:
    """tr(K L) = ||a^T b||_F^2 for K = a a^T, L = b b^T, by whichever of the two forms needs the smaller matrices."""
    if a is b:
        return a.self_cross
    if _wide(a) or _wide(b):
        return float((a.gram * b.gram).sum())
    return float((a.core.T @ b.core).square().sum())


def _wide(sample: Sample) -> bool:
    return sample.rows < sample.core.shape[1]
