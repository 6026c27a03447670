"""Write checkpoints and snapshots in a background thread while training goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

Write = Callable[[], None]


class Writer:
    """A queue of writes, which one background thread carries out in order.

    A write must not depend on data that still changes: copy live tensors first
    (`SavedState.copied`). At most two writes are queued: one running, one waiting. A third caller
    blocks in `wait_for_slot`. Usually the two are a checkpoint and a snapshot of the same step. In main
    memory the checkpoint takes 12 bytes a parameter under AdamW, and the snapshot the size of its
    files.

    After a failure nothing more is written, since later writes may rely on earlier ones. The next
    call raises the error, and so does every later one.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "pico-train-writer")
        self._queued: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def submit(self, write: Write) -> None:
        """Queue `write` behind all earlier ones; errors as `check`."""
        self.wait_for_slot()
        self._queued.append(self._thread.submit(self._do, write))

    def wait_for_slot(self) -> None:
        """Wait until at most one write is queued; errors as `check`."""
        while len(self._queued) > 1:
            # `_do` keeps its error, so that `result` only waits.
            self._queued[0].result()
            self._queued.popleft()
        self.check()

    def check(self) -> None:
        """Raise the error of the write that failed, if any, without waiting."""
        if self._error is not None:
            raise self._error

    def wait(self) -> BaseException | None:
        """Wait until the queue is empty; return the error of the write that failed, or None."""
        while self._queued:
            self._queued[0].result()
            self._queued.popleft()
        return self._error

    def flush(self) -> None:
        """Wait until the queue is empty; errors as `check`."""
        self.wait()
        self.check()

    def close(self, *, drop: bool = False) -> BaseException | None:
        """Finish the queue, or with `drop` only the running write, and end the thread.

        Returns the error of the write that failed, or None. May be called again.
        """
        self._thread.shutdown(wait=True, cancel_futures=drop)
        self._queued.clear()
        return self._error

    def _do(self, write: Write) -> None:
        # Skip the writes that were queued behind the failed one.
        if self._error is not None:
            return
        try:
            write()
        except BaseException as error:  # raised in the thread that trains
            self._error = error
