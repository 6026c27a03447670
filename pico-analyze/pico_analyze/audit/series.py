"""Audit of a series of models that other programs wrote: its steps, compared by their content."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pico_contract.errors import DamagedError, UserError

if TYPE_CHECKING:
    from pico_analyze.sources.base import Source


@runtime_checkable
class Identified(Protocol):
    """A source that can identify the content of its steps, on the hub without downloading it."""

    def content_id(self, step: int) -> str:
        """Return a text that two steps share if the bytes of their weights are equal.

        Raises:
            DamagedError: the weights cannot be read.
        """


def audit_series(source: Source) -> list[str]:
    """List the steps that are damaged or copies of earlier ones, a line each.

    Raises:
        UserError: the source does not identify the content of its steps.
    """
    if not isinstance(source, Identified):
        raise UserError(
            f"{source.name} is not a run of pico-train: its files state no hashes that could be compared"
        )
    lines = []
    for step, sentences in source.damaged.items():
        lines += [f"damage: step {step}: {sentence}" for sentence in sentences]
    equal_steps: dict[str, list[int]] = defaultdict(list)
    for step in source.steps:
        try:
            equal_steps[source.content_id(step)].append(step)
        except DamagedError as error:
            lines.append(f"damage: step {step}: {error}")
    for first, *others in equal_steps.values():
        lines += [
            f"duplicate: step {step}: its files are bit-identical to those of step {first}"
            for step in others
        ]
    return lines
