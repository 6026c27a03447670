"""Batches in turn; a thread reads each while the previous update is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

_PATIENCE = 5.0
"""Seconds that closing waits for a running read.
A read that waits for the hub ends with the process."""


@dataclass(frozen=True)
class Batch:
    """The rows of one update."""

    row_ids: np.ndarray
    """Row ids of all processes, (batch,) int64."""
    tokens: torch.Tensor
    """Token ids of this process, (rows, seq_len + 1) int64 on CPU.
    They are in pinned memory if the device copies asynchronously."""
    replicas: int
    """Number of processes that read the same rows."""


class Reader:
    """Batches 1..last by number, from `read`. With `ahead`, each request also starts the next read.

    The number of a batch determines its rows, so that reading ahead changes neither rows nor order.
    An error is raised when its batch is requested. Any batch may be requested; one that was not
    read ahead is read at once.
    """

    def __init__(self, read: Callable[[int], Batch], last: int, *, ahead: bool) -> None:
        self._read, self._last, self._ahead = read, last, ahead
        self._number = 0  # the batch that is read ahead; 0 is none
        self._batch: Future[Batch] = Future()
        self._thread: threading.Thread | None = None

    def batch(self, number: int) -> Batch:
        """Return batch `number`; waits for it, and raises what `read` raises."""
        # Any other batch is read at once, in this thread.
        batch = self._batch.result() if number == self._number else self._read(number)
        if self._ahead and number < self._last:
            self._begin(number + 1)
        return batch

    def close(self) -> None:
        """Wait for the running read, and drop its error: its update will not happen."""
        if self._thread is not None:
            self._thread.join(_PATIENCE)
        # A later request reads again.
        self._number, self._thread = 0, None

    def _begin(self, number: int) -> None:
        self._number, self._batch = number, Future()
        # A daemon thread, because the end of the process must not wait for a read.
        self._thread = threading.Thread(
            target=self._fulfil,
            args=(self._batch, number),
            daemon=True,
            name="pico-train-reader",
        )
        self._thread.start()

    def _fulfil(self, request: Future[Batch], number: int) -> None:
        try:
            request.set_result(self._read(number))
        except BaseException as error:  # raised where the batch is requested
            request.set_exception(error)
