"""Sources of steps and tensors: runs, and series of models on disk or on the hub."""

from __future__ import annotations

from pico_contract.kinds import KINDS, MICROBATCH_GRADIENTS, SPLITS

from pico_analyze.sources.base import (
    CountsTokens,
    KnowsPositions,
    NotObservedError,
    Source,
    check_kind,
    model_at,
    no_module,
    no_step,
)
from pico_analyze.sources.model_config import geometry

__all__ = [
    "KINDS",
    "MICROBATCH_GRADIENTS",
    "SPLITS",
    "CountsTokens",
    "KnowsPositions",
    "NotObservedError",
    "Source",
    "check_kind",
    "geometry",
    "model_at",
    "no_module",
    "no_step",
]
