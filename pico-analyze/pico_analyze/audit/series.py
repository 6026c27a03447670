"""Audit of a series of models that other programs wrote: its steps, compared by the content of
their files."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pico_contract.errors import DamagedError, UserError

if TYPE_CHECKING:
    from pico_analyze.sources.base import Source


@runtime_checkable
class Identified(Protocol):
    """A source that knows which of its steps are equal, if need be without downloading them."""

    def content_id(self, step: int) -> str:
        """Equal for two steps if the bytes of their weights are; DamagedError where they cannot be
        read."""


def audit_series(source: Source) -> list[str]:
    """One line for each step that is damaged or a copy of an earlier one.

    Raises:
        UserError: the source knows of no content of its steps.
    """
    if not isinstance(source, Identified):
        raise UserError(
            f"{source.name} is not a run of pico-train: its files state no hashes that could be compared"
        )
    lines = [
        f"damage: step {step}: {sentence}"
        for step, found in source.damaged.items()
        for sentence in found
    ]
    steps: dict[str, list[int]] = defaultdict(list)
    for step in source.steps:
        try:
            steps[source.content_id(step)].append(step)
        except DamagedError as error:
            lines.append(f"damage: step {step}: {error}")
    for first, *others in steps.values():
        lines += [
            f"duplicate: step {step}: its files are bit-identical to those of step {first}"
            for step in others
        ]
    return lines
