"""Ctrl-C, SIGTERM and SIGHUP at any moment of a command: one line on stderr, an exit code, never a
traceback.

The handler is installed before anything heavy is imported. A signal that arrives during an import
ends the process at once, because an exception there may be swallowed or crash the library that is
being imported. Anywhere else it raises `Interrupted`, so that drafts are removed and locks given
back. Inside `unfinished` the handler waits for the import.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
_RETRY_SECONDS = 0.05
_IMPORTER = "<frozen importlib._bootstrap>"

# One entry for each body of `unfinished`. A list, since appending is atomic and background writers
# are threads.
_bodies: list[None] = []


class Interrupted(BaseException):
    """A signal asks the command to end; not an Exception, so no handler swallows it."""


@contextmanager
def unfinished() -> Iterator[None]:
    """Mark a body that leaves something behind unless it is unwound, such as a draft or a lock."""
    _bodies.append(None)
    try:
        yield
    finally:
        _bodies.pop()


class Program:
    """A command-line program while it runs.

    Args:
        name: as it is typed, for messages.
        advice: first words of a command -> what an interruption leaves and how to go on; "" is for
            all others.
    """

    def __init__(self, name: str, advice: Mapping[str, str]) -> None:
        self._name, self._advice = name, advice
        self._process = os.getpid()
        self._number: int | None = None  # of the first signal
        self._code: int | None = None  # once the command has ended
        self._retrying = False

    def run(self, load: Callable[[], Callable[[], Any]]) -> NoReturn:
        """Import the command-line interface with `load`, call it, and end the process."""
        for number in SIGNALS:
            # nohup and background jobs ignore some signals, and that choice is respected.
            if signal.getsignal(number) in _DEFAULTS:
                signal.signal(number, self._on_signal)
        sys.unraisablehook = self._on_unraisable
        # Registered first, called last: the interpreter then restores the default of every handler
        # but SIG_IGN, and takes a second or more to take large libraries apart.
        atexit.register(_ignore_signals)
        try:
            load()()
            self._code = 0
        except SystemExit as end:
            self._code = _exit_code(end)
        except BaseException:
            if self._number is None:
                self._code = 1
                raise
        if self._number is not None and self._code != 0:
            self._leave()
        sys.exit(self._code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            os._exit(128 + number)  # a forked child, whose parent speaks
        if self._code is not None:
            os._exit(self._code)  # the command has ended; only the interpreter has not
        # A second signal of the user's does not wait for anything; our own retry of the first is
        # not one.
        again = self._number is not None and not self._retrying
        self._retrying = False
        self._number = self._number or number
        importing = _is_importing(frame)
        if again or (importing and not _bodies):
            self._leave()
        if importing:
            self._retry()
            return
        raise Interrupted

    def _on_unraisable(self, unraisable: Any) -> None:
        if unraisable.exc_type is Interrupted:
            self._retry()  # it was raised where exceptions are dropped, as in a finalizer
        else:
            sys.__unraisablehook__(unraisable)

    def _retry(self) -> None:
        import _thread
        import threading

        def again() -> None:
            self._retrying = True
            _thread.interrupt_main(signal.Signals(self._number or signal.SIGINT))

        # Called from a timer, since nothing says when the import or the finalizer has ended.
        timer = threading.Timer(_RETRY_SECONDS, again)
        timer.daemon = True
        timer.start()

    def _leave(self) -> NoReturn:
        number = self._number or signal.SIGINT
        _ignore_signals()
        event = (
            "interrupted"
            if number == signal.SIGINT
            else f"stopped by {signal.Signals(number).name}"
        )
        with suppress(Exception):  # a stream may be closed, or in the middle of a write
            sys.stdout.flush()
        with suppress(Exception):
            sys.stderr.flush()
        with suppress(OSError):
            os.write(2, f"{self._name}: {event}; {self._advised()}\n".encode())
        os._exit(128 + number)  # without waiting for threads

    def _advised(self) -> str:
        # The advice of two words (`data prepare`) says more than that of one.
        for count in (2, 1):
            command = " ".join(sys.argv[1 : 1 + count])
            if self._advice.get(command):
                return self._advice[command]
        return self._advice[""]


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    sys.stderr.write(f"{end.code}\n")
    return 1


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTER:
            return True
        frame = frame.f_back
    return False
