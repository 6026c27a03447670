"""The lines that a command prints while it works: warnings as sentences, and progress."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

Say = Callable[[str], None]


@contextlib.contextmanager
def warnings_as_lines(say: Say) -> Iterator[None]:
    """Say each warning once as `warning: sentence`, without the code that raised it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                say(f"warning: {message}")


@contextlib.contextmanager
def show_progress(
    say: Say, done_word: str = "measured"
) -> Iterator[Callable[[int, int], None]]:
    """Show progress as a bar on a terminal, elsewhere as a line at each quarter."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:

        def quarter(done: int, total: int) -> None:
            if 4 * done // total > 4 * (done - 1) // total:
                say(f"{done_word} {done} of {total}")

        yield quarter
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(done_word, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
