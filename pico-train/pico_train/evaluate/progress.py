"""Progress of a running evaluation: how many items it reads, and how many are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

Advance = Callable[[int], None]
"""A callback that takes the number of items measured since the last call."""


@dataclass(frozen=True)
class Amount:
    """The number of items (rows, texts, sentences) that a task reads, and the number available."""

    count: int
    available: int
    unit: str

    def __str__(self) -> str:
        if self.count < self.available:
            return f"{self.count:,} of {self.available:,} {self.unit}"
        return f"all {self.count:,} {self.unit}"


ShowProgress = Callable[[str, Amount], AbstractContextManager[Advance]]
"""A function (task, amount) that opens a task's display and gives the callback for its progress."""


def ignore(done: int) -> None:
    """Show nothing of the progress."""


@contextmanager
def hidden(task: str, amount: Amount) -> Iterator[Advance]:
    """Show nothing: the `ShowProgress` of library calls."""
    yield ignore
