"""The console of a session, a mirror of metrics.jsonl."""

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

from pico_train.config import Section
from pico_train.evaluate.progress import ShowProgress
from pico_train.log.mfu import Wanted
from pico_train.log.progress_bars import make_bars, show_evaluation
from pico_train.log.trackers import TrackerName


class LogConfig(Section):
    """How often a run speaks."""

    every: int = Field(1, ge=1)
    """Updates between rows of metrics.jsonl."""
    console_every: int = Field(50, ge=1)
    """Updates between lines on a console that is not a terminal, after the line of a session's
    first update."""
    mfu: Wanted = "auto"
    """Model FLOPs utilisation in metrics.jsonl, against the rate of matrix products that a session
    measures first, in half a second: "auto" is on for accelerators and off on a CPU, where the work
    of others makes the rate doubtful."""
    trackers: tuple[TrackerName, ...] = ()
    """Mirrors of metrics.jsonl: tensorboard (in `logs/`), wandb, trackio; [] is off."""
    project: str = "pico"
    """Project of the run in wandb and trackio."""


class _PipeSafeConsole(Console):
    """A console whose reader may go away (`| head`) without ending the run, as rich's own would."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Reporter:
    """The console of one session: a live bar on a terminal, plain lines elsewhere. It measures the
    pace as well."""

    def __init__(
        self, config: LogConfig, total_steps: int, step: int, tokens: int, quiet: bool = False
    ) -> None:
        self._config, self._total, self._start = config, total_steps, step
        self._console = _PipeSafeConsole(
            file=sys.stdout, quiet=quiet, highlight=False, soft_wrap=True
        )
        self._progress = (
            make_bars(self._console) if self._console.is_terminal and not quiet else None
        )
        self._task = None
        if self._progress is not None:
            self._task = self._progress.add_task(
                "train", total=total_steps, completed=step, info=""
            )
            self._progress.start()
        self._clock, self._tokens = time.perf_counter(), tokens
        self._began = self._clock

    def say(self, line: str) -> None:
        """One plain line."""
        self._console.print(printable(line), markup=False)

    def is_due(self, step: int) -> bool:
        """Whether a console without a bar has a line on update `step`: the session's first, every
        so many, the last."""
        return step in (self._start + 1, self._total) or step % self._config.console_every == 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the body out of the pace: it saves, observes or evaluates, and trains
        nothing."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._clock += time.perf_counter() - began

    def show_evaluation(self, step: int) -> ShowProgress:
        """Show the evaluation of theta_`step`: a second bar on a terminal, a line for each task
        elsewhere."""
        return partial(show_evaluation, self.say, self._progress, f"step {step}: ")

    def update(self, step: int, loss: float, tokens: int) -> float:
        """Report update `step`, with which `tokens` were consumed.

        Returns:
            Tokens a second since the last call, without the time that was `paused`.
        """
        now = time.perf_counter()
        pace = (tokens - self._tokens) / max(now - self._clock, 1e-9)
        self._clock, self._tokens = now, tokens
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, completed=step, info=f"loss {loss:.3f}  {pace:,.0f} tokens/s"
            )
        elif self.is_due(step):
            left = f"  {self._time_left(step, now)} left" if step < self._total else ""
            self.say(f"step {step}/{self._total}  loss {loss:.4f}  {pace:,.0f} tokens/s{left}")
        return pace

    def _time_left(self, step: int, now: float) -> timedelta:
        """The time to the end of the run at the session's mean time an update, everything
        included."""
        a_step = (now - self._began) / (step - self._start)
        return timedelta(seconds=round(a_step * (self._total - step)))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
