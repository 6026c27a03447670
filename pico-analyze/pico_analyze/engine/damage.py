"""Damage: files that cannot be read or do not match their hash, and the numbers that they cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from pico_analyze.components.circuits import UPDATES
from pico_analyze.engine.work import Reference, WorkItem
from pico_analyze.sources.base import Source


class DamagedWarning(UserWarning):
    """A warning that part of a run could not be read; the rest was measured."""


def warn_damaged(sentences: Iterable[str], level: int = 3) -> None:
    """Warn the caller of `measure` once for each sentence.

    Args:
        level: how many calls above this one that caller is, so that the warning names its line.
    """
    for sentence in dict.fromkeys(sentences):
        warnings.warn(sentence, DamagedWarning, stacklevel=level)


DAMAGED = "damaged"
"""Status of a number that needed a damaged file."""


@dataclass(frozen=True)
class Damage:
    """The steps and the references of a work item of which a damaged file was needed."""

    steps: frozenset[int] = frozenset()
    references: frozenset[int] = frozenset()

    def with_steps(self, steps: Iterable[int], references: Iterable[int]) -> Damage:
        """Add further steps and references."""
        return Damage(self.steps.union(steps), self.references.union(references))

    def with_damaged_directories(self, work: WorkItem) -> Damage:
        """Add the steps whose directories were found damaged when the source was opened."""
        other = work.other or work.source
        compared: set[int] = set()
        for step in work.steps:
            references = work.references.get(step, ())
            compared.update(reference.step for reference in references if reference is not None)
        if work.other is None:
            compared.update(work.base.values())
        return self.with_steps(
            (step for step in work.steps if _is_lost(work.source, step, work.kind)),
            (step for step in compared if _is_lost(other, step, work.kind)),
        )

    def concerns(self, work: WorkItem, step: int, reference: Reference | None) -> bool:
        """Whether the number of a step, compared with a reference, needed one of these files."""
        if step in self.steps:
            return True
        base = work.base.get(step)
        compared = base if reference is None else reference.step
        return compared in self.references or (work.other is None and compared in self.steps)

    def hides(self, work: WorkItem) -> bool:
        """Whether damage explains why nothing was measured of a module, which then has rows."""
        if work.unit.circuit is not None:
            return False
        return any(self.concerns(work, step, None) for step in work.steps)


def _is_lost(source: Source, step: int, kind: str) -> bool:
    """Whether a directory or file that was found damaged may have contained `kind` of a step."""
    if step not in source.damaged:
        return False
    may_lie_there = getattr(source, "is_lost", None)
    return may_lie_there is None or may_lie_there(step, "weights" if kind == UPDATES else kind)
