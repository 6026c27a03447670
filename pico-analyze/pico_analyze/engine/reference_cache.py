"""A bounded memory of the matrices that later steps are compared with."""

from __future__ import annotations

from pico_analyze.components.select import ComponentKey
from pico_analyze.engine.inputs import MetricInputs

StepInputs = dict[ComponentKey, MetricInputs]
"""The matrices of a unit at one step, with everything that was derived from them so far."""


class ReferenceCache:
    """Inputs of steps that later steps are compared with, up to a budget of bytes.

    The first step is always accepted, whatever its size, so that some pairs can be measured.
    """

    def __init__(self, budget: int, *, counts_samples: bool) -> None:
        """Make an empty cache.

        Args:
            budget: the bytes that all steps together may take.
            counts_samples: whether metrics derive samples, which take more than the matrix itself.
        """
        self.budget = budget
        self.is_full = False
        self._counts_samples = counts_samples
        self._inputs: dict[int, StepInputs] = {}
        self._bytes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._inputs)

    def get(self, step: int) -> StepInputs | None:
        """Return the inputs of a step, or None if they are not here."""
        return self._inputs.get(step)

    def put(self, step: int, inputs: StepInputs) -> bool:
        """Add the inputs of a step, and return whether there was room for them."""
        size = sum(self._bytes_of(one) for one in inputs.values())
        self.is_full = len(self) > 0 and sum(self._bytes.values()) + size > self.budget
        if not self.is_full:
            self._inputs[step] = inputs
            self._bytes[step] = size
        return not self.is_full

    def release(self, step: int) -> None:
        """Drop the inputs of a step, if they are here, to make room for others."""
        if step in self._inputs:
            del self._inputs[step], self._bytes[step]
            self.is_full = False

    def _bytes_of(self, inputs: MetricInputs) -> int:
        return max(inputs.bytes, inputs.sample_bytes) if self._counts_samples else inputs.bytes
