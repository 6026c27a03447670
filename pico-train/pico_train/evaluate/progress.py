"""What a running evaluation says of itself: how much it reads, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

Advance = Callable[[int], None]
"""Called with the number of items that were measured since the last call."""


@dataclass(frozen=True)
class Amount:
    """How many items (rows, texts, sentences) a task reads, out of how many there are."""

    count: int
    available: int
    unit: str

    def __str__(self) -> str:
        if self.count < self.available:
            return f"{self.count:,} of {self.available:,} {self.unit}"
        return f"all {self.count:,} {self.unit}"


ShowProgress = Callable[[str, Amount], AbstractContextManager[Advance]]
"""Called with a task's name and amount before it is measured; what it gives is called while it
runs."""


def ignore(done: int) -> None:
    """Show nothing of the progress."""


@contextmanager
def hidden(task: str, amount: Amount) -> Iterator[Advance]:
    """A `ShowProgress` that shows nothing."""
    yield ignore
