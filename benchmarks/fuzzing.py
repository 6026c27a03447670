"""Run commands on damaged inputs and judge how they end: exit code 0, 1 or 2 with a sentence, never a traceback.

A program that fuzzes draws a mutation of a named kind from a seed, runs a command with `in_process` or `as_command`,
and counts the endings in a `Tally`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from unittest import mock

CODES = (0, 1, 2)
"""Exit codes that are valid for a command that was not interrupted."""
LONGEST_MESSAGE = 20_000
"""Characters on stderr; more than that is not a sentence."""


class HungError(BaseException):
    """A command took longer than its time; not an Exception, so no handler swallows it."""


@dataclass(frozen=True)
class Ending:
    """How one command ended: its exit code (None: it hung or raised), stderr, and what is wrong with that."""

    code: int | None
    message: str
    seconds: float
    problem: str | None


def in_process(program: str, arguments: Sequence[str], seconds: float = 120.0) -> Ending:
    """Run `pico-train` or `pico-analyze` in this process (the main thread of it)."""
    main = importlib.import_module(f"{program.replace('-', '_')}.cli").main
    err = io.StringIO()
    start = time.monotonic()
    code: int | None = 0
    raised: str | None = None
    silence = contextlib.redirect_stdout(io.StringIO())
    arguments_of_program = mock.patch.object(sys, "argv", [program, *arguments])
    try:
        with _alarm(seconds), arguments_of_program, contextlib.redirect_stderr(err), silence:
            main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except HungError:
        code, raised = None, f"hung for {seconds:g} s"
    except Exception:
        code, raised = None, traceback.format_exc()
    return Ending(code, err.getvalue(), time.monotonic() - start, raised or _problem(code, err.getvalue()))


def as_command(program: str, arguments: Sequence[str], seconds: float = 120.0) -> Ending:
    """Run `pico-train` or `pico-analyze` in a process of its own."""
    command = [sys.executable, "-m", program.replace("-", "_"), *arguments]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Ending(None, "", time.monotonic() - start, f"hung for {seconds:g} s")
    return Ending(done.returncode, done.stderr, time.monotonic() - start, _problem(done.returncode, done.stderr))


def _problem(code: int | None, message: str) -> str | None:
    if "Traceback (most recent call last)" in message:
        return "a traceback"
    if code not in CODES:
        return f"exit code {code}"
    if code != 0 and not message.strip():
        return f"exit code {code} without a sentence"
    if len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message):,} characters"
    return None


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Tally:
    """Endings by kind of mutation."""

    codes: dict[str, Counter[int | None]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, kind: str, label: str, ending: Ending) -> None:
        """Count one ending; `label` (a seed, an input) is what repeats it."""
        self.codes.setdefault(kind, Counter())[ending.code] += 1
        self.slowest = max(self.slowest, ending.seconds)
        if ending.problem is not None:
            self.problems.append(f"{kind} {label}: {ending.problem}\n{ending.message[:500]}")

    def table(self) -> str:
        """One line a kind: how many ended with each exit code."""
        columns = [*CODES, "other"]
        lines = [f"{'mutation':24}" + "".join(f"{f'exit {column}':>10}" for column in columns)]
        for kind, codes in sorted(self.codes.items()):
            counts = [codes[code] for code in CODES]
            counts.append(sum(codes.values()) - sum(counts))
            lines.append(f"{kind:24}" + "".join(f"{count:10,}" for count in counts))
        total = sum(sum(codes.values()) for codes in self.codes.values())
        lines.append(f"{total:,} in all, {len(self.problems)} of them wrong; the slowest took {self.slowest:.1f} s")
        return "\n".join(lines)
