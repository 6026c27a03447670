"""The batches of a run: which rows an update reads, and reading them ahead of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pico_train.data.order import RowOrder
from pico_train.data.packed import Rows
from pico_train.data.prefetch import Batch, Reader

Share = Callable[[torch.Tensor], tuple[torch.Tensor | None, int]]
"""Rows of a batch -> (this process's part of them, how many processes compute the same part)."""


class BatchLoader:
    """The batches of a run by number: batch n belongs to the n-th update that reads rows.

    `order` alone decides which rows a batch has. With `prefetch`, a thread reads the next batch
    into pinned memory while the device computes the current one.
    """

    def __init__(
        self,
        rows: Rows,
        order: RowOrder,
        seq_len: int,
        *,
        n_batches: int,
        share: Share,
        prefetch: bool,
    ) -> None:
        self.rows = rows
        self.order = order
        self._seq_len = seq_len
        self._n_batches = n_batches
        self._share = share
        self._prefetch = prefetch
        self._reader = Reader(self._read, n_batches, ahead=prefetch)

    def batch(self, number: int) -> Batch:
        """Return batch `number`, waiting for it if it is being read; a failed read raises here."""
        return self._reader.batch(number)

    def tokens(self, row_ids: np.ndarray) -> torch.Tensor:
        """Read the token ids of `row_ids`: (rows, seq_len + 1) int64 on CPU."""
        return torch.from_numpy(self.rows.take(row_ids)[:, : self._seq_len + 1])

    def close(self) -> None:
        """Wait for the thread that reads ahead, and drop its batch."""
        self._reader.close()

    def _read(self, number: int) -> Batch:
        row_ids = self.order.rows(number)
        own_rows, replicas = self._share(torch.from_numpy(row_ids))
        assert own_rows is not None  # None stands for a batch without rows only
        tokens = self.tokens(own_rows.numpy())
        self.rows.prefetch(self.order.ahead(number, self._n_batches))
        if self._prefetch:
            tokens = tokens.pin_memory()
        return Batch(row_ids, tokens, replicas)
