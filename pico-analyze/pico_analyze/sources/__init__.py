"""What the engine asks of a place that steps and tensors come from; one module per format implements it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

KINDS = ("weights", "gradients", "activations")
SPLITS = ("train", "val")


class Source(Protocol):
    """A series of observed steps of one model."""

    @property
    def name(self) -> str:
        """Name in the `run` column of the table."""

    @property
    def model(self) -> Mapping[str, Any]:
        """Geometry under Hugging Face configuration names."""

    @property
    def steps(self) -> Sequence[int]:
        """Steps with something intact to read, ascending."""

    @property
    def damaged(self) -> Mapping[int, Sequence[str]]:
        """Step -> one sentence for each of its directories that is not intact."""

    def tokens(self, step: int) -> int | None:
        """Training tokens consumed up to `step`; None where it is not recorded."""

    def splits(self, step: int, kind: str) -> list[str | None]:
        """Splits of which `step` holds `kind`; [None] for weights, [] where it holds none."""

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """Names of the modules that have a tensor of `kind` at `step`."""

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        """The tensor in its stored dtype, on CPU."""
