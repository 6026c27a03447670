"""Writing beside training: what was handed over is written by one thread, in order, while training
goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

Write = Callable[[], None]


class Writer:
    """Writes what it is handed, one after another, in a thread of its own.

    What is handed over must not change any more: live tensors are copied before
    (`SavedState.copied`). At most two writes are in hand, one under way and one waiting; who brings
    a third waits in `wait_for_slot`. At the usual cadence these are a checkpoint and a snapshot of one
    step: in main memory, 12 bytes a parameter under AdamW for the one and the size of its files for
    the other.

    After a failure nothing more is written, since what comes later may rely on what came before;
    the error is raised at the next occasion, and at every later one.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "pico-train-writer")
        self._queued: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def submit(self, write: Write) -> None:
        """Have `write` done after everything that was handed over before; errors as `check`."""
        self.wait_for_slot()
        self._queued.append(self._thread.submit(self._do, write))

    def wait_for_slot(self) -> None:
        """Wait until at most one write is in hand; errors as `check`."""
        while len(self._queued) > 1:
            self._queued[0].result()
            self._queued.popleft()
        self.check()

    def check(self) -> None:
        """Raise what a write has raised, the exception itself; waits for nothing."""
        if self._error is not None:
            raise self._error

    def wait(self) -> BaseException | None:
        """Wait until nothing is in hand any more; what a write has raised, else None."""
        while self._queued:
            self._queued[0].result()
            self._queued.popleft()
        return self._error

    def flush(self) -> None:
        """Wait until everything is written; errors as `check`."""
        self.wait()
        self.check()

    def close(self, *, drop: bool = False) -> BaseException | None:
        """Write what is in hand, or with `drop` end the write under way alone, and end the thread;
        errors as `wait`. May be called again."""
        self._thread.shutdown(wait=True, cancel_futures=drop)
        self._queued.clear()
        return self._error

    def _do(self, write: Write) -> None:
        if self._error is not None:
            return
        try:
            write()
        except BaseException as error:  # raised in the thread that trains
            self._error = error
