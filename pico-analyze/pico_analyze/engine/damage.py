"""Which numbers of a work item are lacking because a file could not be read, or is not what its
hash says."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from pico_analyze.components.circuits import UPDATES
from pico_analyze.engine.work import Reference, WorkItem
from pico_analyze.sources.base import Source


class DamagedWarning(UserWarning):
    """Part of a run could not be read; the rest was measured."""


def warn_damaged(sentences: Iterable[str], level: int = 3) -> None:
    """Warn whoever called `measure`, which is `level` calls above; once for each sentence."""
    for sentence in dict.fromkeys(sentences):
        warnings.warn(sentence, DamagedWarning, stacklevel=level)


DAMAGED = "damaged"
"""Status of a number that needed such a file."""


@dataclass(frozen=True)
class Damage:
    """The steps of a work item, and those that they are compared with, of which such a file was
    needed."""

    steps: frozenset[int] = frozenset()
    references: frozenset[int] = frozenset()

    def with_steps(self, steps: Iterable[int], references: Iterable[int]) -> Damage:
        """With further steps."""
        return Damage(self.steps.union(steps), self.references.union(references))

    def with_damaged_directories(self, work: WorkItem) -> Damage:
        """With the steps whose directories were found damaged when the source was opened."""
        own = frozenset(step for step in work.steps if _is_lost(work.source, step, work.kind))
        other = work.other or work.source
        compared = {
            found.step for step in work.steps for found in work.references.get(step, ()) if found
        }
        compared |= set() if work.other else set(work.base.values())
        return self.with_steps(own, (step for step in compared if _is_lost(other, step, work.kind)))

    def concerns(self, work: WorkItem, step: int, reference: Reference | None) -> bool:
        """Whether the number of a step, compared with a reference, needed one of these files."""
        if step in self.steps:
            return True
        base = work.base.get(step)
        compared = base if reference is None else reference.step
        return compared in self.references or (work.other is None and compared in self.steps)

    def hides(self, work: WorkItem) -> bool:
        """Whether a module of which nothing was measured has rows all the same, since a file of it
        is damaged."""
        return work.unit.circuit is None and any(
            self.concerns(work, step, None) for step in work.steps
        )


def _is_lost(source: Source, step: int, kind: str) -> bool:
    """Whether `kind` of a step may lie in a directory or file that was found damaged."""
    if step not in source.damaged:
        return False
    may_lie_there = getattr(source, "is_lost", None)
    return may_lie_there is None or may_lie_there(step, "weights" if kind == UPDATES else kind)
