"""Linear algebra: matrices, spectra, samples, and the one policy on precision."""

from __future__ import annotations

from pico_analyze.linalg.matrix import (
    FactoredMatrix,
    GradientStack,
    Matrix,
    Spectrum,
    WeightUpdate,
    coarser,
    difference,
    entries,
    inner,
    is_finite,
    norm,
    norm_ratio,
    normalized,
    sorted_magnitudes,
    spectra,
    storage_error,
)

__all__ = [
    "FactoredMatrix",
    "GradientStack",
    "Matrix",
    "Spectrum",
    "WeightUpdate",
    "coarser",
    "difference",
    "entries",
    "inner",
    "is_finite",
    "norm",
    "norm_ratio",
    "normalized",
    "sorted_magnitudes",
    "spectra",
    "storage_error",
]
