"""Kinds of tensors that a step holds, and the splits of data on which they are observed."""

from __future__ import annotations

WEIGHTS = "weights"
GRADIENTS = "gradients"
ACTIVATIONS = "activations"
MICROBATCH_GRADIENTS = "microbatch_gradients"
"""Gradients of each micro-batch's mean loss, stacked: (m, ...) where a gradient is (...)."""

KINDS = (WEIGHTS, GRADIENTS, ACTIVATIONS, MICROBATCH_GRADIENTS)
SPLITS = ("train", "val")


def observation_name(split: str, kind: str) -> str:
    """Name what was observed on a split, such as `train.gradients`: in a configuration, in
    `absent`, in file names."""
    return f"{split}.{kind}"
