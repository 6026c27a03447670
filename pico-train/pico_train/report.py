"""What a run says: metrics.jsonl (the truth) and the console (a mirror)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pico_contract import codec
from pico_contract.errors import DamagedError, naming
from pico_contract.files import MISSING, irregular
from pico_contract.layout import RunLayout
from pico_contract.schema import FileEntry
from pico_contract.terminal import printable
from pydantic import Field
from rich.console import Console

from pico_train.config import Section
from pico_train.console import make_bars, show_evaluation
from pico_train.evaluate.progress import ShowProgress
from pico_train.state import Counters
from pico_train.trackers import TrackerName
from pico_train.utilisation import Wanted


class LogConfig(Section):
    """How often a run speaks."""

    every: int = Field(1, ge=1)
    """Updates between rows of metrics.jsonl."""
    console_every: int = Field(50, ge=1)
    """Updates between lines on a console that is not a terminal, after the line of a session's first update."""
    mfu: Wanted = "auto"
    """Model FLOPs utilisation in metrics.jsonl, against the rate of matrix products that a session measures first, in
    half a second: "auto" is on for accelerators and off on a CPU, where the work of others makes the rate doubtful."""
    trackers: tuple[TrackerName, ...] = ()
    """Mirrors of metrics.jsonl: tensorboard (in `logs/`), wandb, trackio; [] is off."""
    project: str = "pico"
    """Project of the run in wandb and trackio."""


_LARGEST = 1 << 63
"""No step and no loss of a run is as large: a number beyond it is damage."""


class MetricsFile:
    """metrics.jsonl, opened for appending after the rows beyond the resumed step were moved to logs/.

    `was_cut` says whether there were such rows.

    Raises:
        DamagedError: it is a link or not a file, and rows would go somewhere else.
    """

    def __init__(self, layout: RunLayout, resumed_step: int) -> None:
        problem = irregular(layout.metrics)
        if problem not in (None, MISSING):
            raise DamagedError(f"{layout.metrics} {problem}")
        layout.logs.mkdir(parents=True, exist_ok=True)
        before = layout.cuts
        _cut_metrics(layout, resumed_step)
        self.was_cut = layout.cuts > before
        self._path = layout.metrics
        written = layout.metrics.read_bytes()
        self._size, self._hash = len(written), hashlib.sha256(written)
        self._handle: TextIO = layout.metrics.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        """One JSON object on one line, handed to the operating system at once."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with naming(self._path, self._path):
            self._handle.write(line)
            self._handle.flush()
        self._size += len(line)  # JSON is written in ASCII
        self._hash.update(line.encode())

    @property
    def entry(self) -> FileEntry:
        """Size and sha256 of all rows so far, which the next checkpoint records."""
        return FileEntry(self._size, self._hash.hexdigest())

    def sync(self) -> None:
        """Make every row durable: called before a checkpoint that promises them, from any thread."""
        with naming(self._path, self._path):
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file; rows that could not be written were reported when they were appended."""
        with contextlib.suppress(OSError):
            self._handle.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; lines that are none (the last, cut short by a crash, or damage) are left out."""
    return [row for _, row in _lines(path) if row is not None]


def _lines(path: Path) -> list[tuple[str, dict[str, Any] | None]]:
    if not path.is_file():
        return []
    return [(line, _parsed(line)) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]


def _parsed(line: str) -> dict[str, Any] | None:
    """The row in a line of metrics.jsonl, None where it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # also a number of thousands of digits
        return None
    if not (isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("loss"), int | float)):
        return None
    return row if max(abs(row["step"]), abs(row["loss"])) < _LARGEST or row["loss"] != row["loss"] else None


def _cut_metrics(layout: RunLayout, step: int) -> None:
    lines = _lines(layout.metrics)
    kept = [line for line, row in lines if row is not None and row["step"] <= step]
    cut = [line for line, row in lines if row is None or row["step"] > step]
    if cut:
        codec.write_text(layout.cut_metrics(), "".join(f"{line}\n" for line in cut))
    text = "".join(f"{line}\n" for line in kept)
    if not layout.metrics.is_file() or layout.metrics.read_bytes() != text.encode():
        codec.write_text(layout.metrics, text)


class _Mirror(Console):
    """A console whose reader may go away (`| head`) without ending the run, as rich's own would."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Reporter:
    """The console of one session: a live bar on a terminal, plain lines elsewhere. It measures the pace as well."""

    def __init__(self, config: LogConfig, total_steps: int, start: Counters, quiet: bool = False) -> None:
        self._config, self._total, self._start = config, total_steps, start.step
        self._console = _Mirror(file=sys.stdout, quiet=quiet, highlight=False, soft_wrap=True)
        self._progress = make_bars(self._console) if self._console.is_terminal and not quiet else None
        self._task = None
        if self._progress is not None:
            self._task = self._progress.add_task("train", total=total_steps, completed=start.step, info="")
            self._progress.start()
        self._clock, self._tokens = time.perf_counter(), start.tokens
        self._began = self._clock

    def say(self, line: str) -> None:
        """One plain line."""
        self._console.print(printable(line), markup=False)

    def is_due(self, step: int) -> bool:
        """Whether a console without a bar has a line on update `step`: the session's first, every so many, the last."""
        return step in (self._start + 1, self._total) or step % self._config.console_every == 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the body out of the pace: it saves, observes or evaluates, and trains nothing."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._clock += time.perf_counter() - began

    def show_evaluation(self, step: int) -> ShowProgress:
        """Show the evaluation of theta_`step`: a second bar on a terminal, a line for each task elsewhere."""
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
            self._progress.update(self._task, completed=step, info=f"loss {loss:.3f}  {pace:,.0f} tokens/s")
        elif self.is_due(step):
            left = f"  {self._time_left(step, now)} left" if step < self._total else ""
            self.say(f"step {step}/{self._total}  loss {loss:.4f}  {pace:,.0f} tokens/s{left}")
        return pace

    def _time_left(self, step: int, now: float) -> timedelta:
        """The time to the end of the run at the session's mean time an update, everything included."""
        a_step = (now - self._began) / (step - self._start)
        return timedelta(seconds=round(a_step * (self._total - step)))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
