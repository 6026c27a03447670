"""A work item: one unit of one kind, and where each of its numbers belongs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pico_analyze.components.select import ComponentKey, MeasuredUnit
from pico_analyze.sources.base import Source


class Reference(NamedTuple):
    """The other member of pairs: the unit at `step`, or its layers `shift` places earlier."""

    step: int
    shift: int = 0


class Cell(NamedTuple):
    """The address of numbers: a step, and the reference that it is compared with, if any."""

    step: int
    reference: Reference | None = None


@dataclass(frozen=True)
class WorkItem:
    """One unit of one kind and split, to be measured at `steps`.

    `base` maps a step to the start of its update's window. `references` maps a step to its
    references, None for one that is missing; their steps are those of `other`, or of `source` if
    `other` is None. `draws` counts the draws of the null. `dense_circuits` says whether metrics of entries
    apply to circuits, whose matrices, (D, D) a head, are then formed.
    """

    source: Source
    unit: MeasuredUnit
    kind: str
    split: str | None
    steps: tuple[int, ...]
    base: Mapping[int, int] = field(default_factory=dict)
    references: Mapping[int, tuple[Reference | None, ...]] = field(default_factory=dict)
    other: Source | None = None
    draws: int = 0
    dense_circuits: bool = False

    def pairs(self, reference: Reference | None) -> dict[ComponentKey, ComponentKey]:
        """Map each key that is measured with a reference to the key that it is compared with.

        The reference has the same keys at another step, or, with a shift, earlier ones: then the
        first keys have no partner and are left out.
        """
        keys = self.unit.keys
        shift = 0 if reference is None else reference.shift
        return dict(zip(keys[shift:], keys, strict=False))
