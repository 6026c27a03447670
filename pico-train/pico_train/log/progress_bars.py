"""The display of progress: a bar on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from pico_contract.terminal import printable
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from pico_train.evaluate.progress import Advance, Amount, ShowProgress

LINE_SECONDS = 30.0
"""Least seconds between two plain lines of one evaluation."""


def make_bars(console: Console) -> Progress:
    """Make bars with a description, a count, the text field `info` and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def progress_on_stderr() -> Iterator[ShowProgress]:
    """Show the progress of evaluations on stderr, so that stdout holds only results."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(printable(line), markup=False)

    # In a file, the updates of a bar would be thousands of lines.
    if not console.is_terminal:
        yield partial(show_evaluation, say, None, "")
        return
    with make_bars(console) as bars:
        yield partial(show_evaluation, say, bars, "")


@contextmanager
def show_evaluation(
    say: Callable[[str], None], bars: Progress | None, prefix: str, task: str, amount: Amount
) -> Iterator[Advance]:
    """Show the progress of the evaluation `task`: as a bar of `bars`, or as lines with `prefix`."""
    if bars is None:
        say(f"{prefix}evaluating {task} on {amount}")
        yield _line_advance(say, f"{prefix}{task}", amount)
        return
    bar = bars.add_task(f"evaluate {task}", total=amount.count, info=amount.unit)
    try:
        yield _bar_advance(bars, bar)
    finally:
        # The bar of training, which may share the display, stays.
        bars.remove_task(bar)


def _bar_advance(bars: Progress, bar: TaskID) -> Advance:
    return lambda more: bars.update(bar, advance=more)


def _line_advance(say: Callable[[str], None], name: str, amount: Amount) -> Advance:
    """Say how much is done, at most every `LINE_SECONDS`."""
    done, said_at = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, said_at
        done += more
        if time.monotonic() - said_at >= LINE_SECONDS:
            say(f"{name}: {done:,} of {amount.count:,} {amount.unit}")
            said_at = time.monotonic()

    return advance
