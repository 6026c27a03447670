"""Requests to stop a session in good order: by a signal, or by the clock."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """A request to stop, made by a signal or the clock and read between updates."""

    deadline: float = math.inf
    reason: str | None = None

    def asked(self) -> str | None:
        """Return why to stop now, or None."""
        if self.reason is None and time.monotonic() > self.deadline:
            self.reason = "the wall-clock limit is near"
        return self.reason

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Finish the update, save, stop; a second Ctrl-C interrupts at once."""
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.reason = f"received {signal.Signals(number).name}"


@contextmanager
def handle_signals(stop: StopRequest) -> Iterator[None]:
    """Turn SIGTERM, SIGUSR1 and the first Ctrl-C into a stop request."""
    # Only the main thread may set handlers: a run that another thread started (a notebook's
    # worker) is stopped by its clock alone.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, stop.on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
