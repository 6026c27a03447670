"""A work item: one unit of one kind, and the places of its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pico_analyze.components.select import MeasuredUnit
from pico_analyze.sources.base import Source


class Reference(NamedTuple):
    """What a unit is compared with: the unit at `step`, each key with the one `shift` places before
    it."""

    step: int
    shift: int = 0


class Cell(NamedTuple):
    """Where a number belongs: a step, and what it is compared with there."""

    step: int
    reference: Reference | None = None


@dataclass(frozen=True)
class WorkItem:
    """One unit of one kind and split, to be measured at `steps`.

    `base` is step -> the start of an update's window. `references` is step -> what similarities are
    taken to there, None where that is lacking; they are steps of `other`, or of the source itself.
    `draws` are those of the null, or 0. `dense_circuits` says whether a circuit's matrix, (D, D) a head, is
    formed where a metric needs its entries.
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
