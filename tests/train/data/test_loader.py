"""The batches of a run: rows in the order of the run, cut to its sequence length and shared among processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pico_train.data.loader import BatchLoader
from pico_train.run import RunConfig, build

Tiny = Callable[..., RunConfig]


def test_a_batch_has_the_rows_of_its_number(tiny: Tiny) -> None:
    loader = build(tiny(**{"train.seq_len": 12})).loader
    batch = loader.batch(3)
    assert batch.row_ids.tolist() == loader.order.rows(3).tolist()
    assert torch.equal(batch.tokens, torch.from_numpy(loader.rows.take(batch.row_ids)[:, :13]))
    assert batch.tokens.dtype == torch.int64


def test_each_process_reads_its_part_of_the_same_batch(tiny: Tiny) -> None:
    whole = build(tiny()).loader

    def second_of_two(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        return rows.tensor_split(2)[1], 1

    loader = BatchLoader(whole.rows, whole.order, 16, n_batches=10, share=second_of_two, prefetch=False)
    batch = loader.batch(1)
    assert np.array_equal(batch.row_ids, whole.batch(1).row_ids)
    assert torch.equal(batch.tokens, whole.batch(1).tokens[4:])
