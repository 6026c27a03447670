"""Metrics: pure functions of matrices and samples, and the registry of them."""

from __future__ import annotations

from pico_analyze.metrics.registry import ENTRY, METRICS, Metric, resolve

__all__ = [
    "ENTRY",
    "METRICS",
    "Metric",
    "resolve",
]
