"""Batches in turn, each read by a thread while the update before it is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

_PATIENCE = 5.0
"""Seconds that closing waits for a read under way; one that waits for the hub ends with the
process."""


@dataclass(frozen=True)
class Batch:
    """What an update reads of the rows."""

    row_ids: np.ndarray
    """(batch,) int64, in all processes."""
    tokens: torch.Tensor
    """(rows, seq_len + 1) int64 on CPU: this process's; pinned where a device copies them by
    itself."""
    replicas: int
    """How many processes read the same."""


class Reader:
    """Batches 1..last by their number, as `read` gives them. With `ahead`, asking for one begins to
    read the next.

    Which rows a batch has follows from its number alone, so that reading ahead changes neither rows
    nor order; an error is raised when the batch is asked for that it belongs to. Another than the
    next may be asked for, and is then read at once.
    """

    def __init__(self, read: Callable[[int], Batch], last: int, *, ahead: bool) -> None:
        self._read, self._last, self._ahead = read, last, ahead
        self._number = 0  # of the batch that is being read
        self._batch: Future[Batch] = Future()
        self._thread: threading.Thread | None = None

    def batch(self, number: int) -> Batch:
        """Batch `number`; waits for it, and raises what `read` does."""
        found = self._batch.result() if number == self._number else self._read(number)
        if self._ahead and number < self._last:
            self._begin(number + 1)
        return found

    def close(self) -> None:
        """End the read under way; its error, which belongs to an update that is not to come, is
        dropped."""
        if self._thread is not None:
            self._thread.join(_PATIENCE)
        self._number, self._thread = 0, None

    def _begin(self, number: int) -> None:
        self._number, self._batch = number, Future()
        # Of the kind that the end of the process does not wait for.
        self._thread = threading.Thread(
            target=self._fulfil, args=(self._batch, number), daemon=True, name="pico-train-reader"
        )
        self._thread.start()

    def _fulfil(self, asked: Future[Batch], number: int) -> None:
        try:
            asked.set_result(self._read(number))
        except BaseException as error:  # raised where the batch is asked for
            asked.set_exception(error)
