"""The console of a session: the progress of training for a person to read."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

from pico_contract.terminal import printable
from pydantic import Field
from rich.console import Console
from rich.progress import Progress

from pico_train.config import Section
from pico_train.evaluate.progress import ShowProgress
from pico_train.log.mfu import Wanted
from pico_train.log.progress_bars import make_bars, show_evaluation
from pico_train.log.trackers import TrackerName


class LogConfig(Section):
    """Settings of metrics.jsonl, the console and the trackers."""

    every: int = Field(1, ge=1)
    """Updates between rows of metrics.jsonl."""
    console_every: int = Field(50, ge=1)
    """Updates between lines on a console that is not a terminal.

    The first update of a session and the last of a run always have a line."""
    mfu: Wanted = "auto"
    """Model FLOPs utilisation in metrics.jsonl: auto, on or off.

    It is relative to the rate of matrix products that each session measures in its first half
    second. "auto" is on for accelerators and off for CPUs, where other processes distort the rate.
    """
    trackers: tuple[TrackerName, ...] = ()
    """Trackers that mirror metrics.jsonl: tensorboard (in `logs/`), wandb, trackio; [] is off."""
    project: str = "pico"
    """Project of the run in wandb and trackio."""


class _PipeSafeConsole(Console):
    """A console that falls silent if its reader goes away (`| head`), so that training goes on."""

    def on_broken_pipe(self) -> None:
        # rich would exit. Python's flush of stdout at exit would fail as well, hence the devnull.
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Reporter:
    """The console of one session: a live bar on a terminal, plain lines elsewhere.

    It also measures the pace of training, in tokens a second.
    """

    def __init__(
        self, config: LogConfig, total_steps: int, step: int, tokens: int, quiet: bool = False
    ) -> None:
        self._line_every = config.console_every
        self._first, self._last = step + 1, total_steps
        # A soft wrap leaves long lines whole, so that they can be searched in a log file.
        self._console = _PipeSafeConsole(
            file=sys.stdout, quiet=quiet, highlight=False, soft_wrap=True
        )
        self._bars: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bars = make_bars(self._console)
            self._bar = self._bars.add_task("train", total=total_steps, completed=step, info="")
            self._bars.start()
        self._began = time.perf_counter()
        self._reported_at, self._reported_tokens = self._began, tokens

    def say(self, line: str) -> None:
        """Print one plain line."""
        # Without markup: brackets in names and paths are not styles.
        self._console.print(printable(line), markup=False)

    def is_due(self, step: int) -> bool:
        """Whether a console without a bar prints a line on update `step`."""
        return step in (self._first, self._last) or step % self._line_every == 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the `with` block, which does not train, out of the pace."""
        began = time.perf_counter()
        try:
            yield
        finally:
            # Moving the start of the measurement is as good as stopping its clock.
            self._reported_at += time.perf_counter() - began

    def show_evaluation(self, step: int) -> ShowProgress:
        """Show the evaluation of theta_`step`: as a second bar on a terminal, else as lines."""
        return partial(show_evaluation, self.say, self._bars, f"step {step}: ")

    def update(self, step: int, loss: float, tokens: int) -> float:
        """Report update `step`, after which the run has consumed `tokens`.

        Returns:
            Tokens a second since the last call, without the time that was `paused`.
        """
        now = time.perf_counter()
        pace = self._pace(tokens, now)
        speed = f"{pace:,.0f} tokens/s"
        if self._bars is not None:
            info = f"loss {loss:.3f}  {speed}"
            self._bars.update(self._bar, completed=step, info=info)
        elif self.is_due(step):
            left = self._time_left(step, now)
            self.say(f"step {step}/{self._last}  loss {loss:.4f}  {speed}{left}")
        return pace

    def _pace(self, tokens: int, now: float) -> float:
        """Return the tokens a second since the last call, and start the next measurement."""
        seconds = max(now - self._reported_at, 1e-9)
        pace = (tokens - self._reported_tokens) / seconds
        self._reported_at, self._reported_tokens = now, tokens
        return pace

    def _time_left(self, step: int, now: float) -> str:
        """Estimate the time to the end of the run; empty after the last update."""
        if step >= self._last:
            return ""
        # The session's mean, unlike the pace, includes saving, observing and evaluating.
        steps_done = step - self._first + 1
        seconds_a_step = (now - self._began) / steps_done
        left = timedelta(seconds=round(seconds_a_step * (self._last - step)))
        return f"  {left} left"

    def close(self) -> None:
        """Remove the bar of a terminal."""
        if self._bars is not None:
            self._bars.stop()
