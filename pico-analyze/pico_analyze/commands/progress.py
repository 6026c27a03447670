"""The lines that a command prints while it works: warnings as sentences, and progress."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

Say = Callable[[str], None]


@contextlib.contextmanager
def warnings_as_lines(say: Say) -> Iterator[None]:
    """Warnings as `warning: sentence`, without the line of code that raised them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                say(f"warning: {message}")


@contextlib.contextmanager
def show_progress(say: Say, done_word: str = "measured") -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line at each quarter elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:

        def quarter(done: int, all_: int) -> None:
            if 4 * done // all_ > 4 * (done - 1) // all_:
                say(f"{done_word} {done} of {all_}")

        yield quarter
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(done_word, total=None)
        yield lambda done, all_: bar.update(task, completed=done, total=all_)
