"""Batches that a thread reads ahead: the same ones in the same order, and errors where their batch is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pico_train import train
from pico_train.data.packed import PackedRows
from pico_train.data.prefetch import Batch, Reader
from pico_train.distributed import Runtime
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig

Tiny = Callable[..., RunConfig]


class Source:
    """Batches that know who read them; batch 4 cannot be read."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.threads: dict[int, str] = {}

    def __call__(self, number: int) -> Batch:
        self.read.append(number)
        self.threads[number] = threading.current_thread().name
        if number == 4:
            raise OSError("the disk is gone")
        return Batch(np.array([number]), torch.tensor([[number]]), 1)


def test_ahead_a_thread_reads_the_next_and_none_beyond_the_last() -> None:
    source = Source()
    reader = Reader(source, last=3, ahead=True)
    assert [int(reader.batch(number).row_ids[0]) for number in (1, 2, 3)] == [1, 2, 3]
    assert source.read == [1, 2, 3]
    assert source.threads == {1: "MainThread", 2: "pico-train-reader", 3: "pico-train-reader"}


def test_not_ahead_nothing_is_read_before_it_is_asked_for() -> None:
    source = Source()
    reader = Reader(source, last=3, ahead=False)
    reader.batch(1)
    assert source.read == [1]
    assert set(source.threads.values()) == {"MainThread"}


def test_an_error_waits_for_its_batch() -> None:
    reader = Reader(Source(), last=9, ahead=True)
    assert int(reader.batch(3).row_ids[0]) == 3
    with pytest.raises(OSError, match="the disk is gone"):
        reader.batch(4)


def test_another_batch_than_the_next_is_read_at_once() -> None:
    reader = Reader(Source(), last=9, ahead=True)
    assert [int(reader.batch(number).row_ids[0]) for number in (1, 7, 8, 2)] == [1, 7, 8, 2]


def test_closing_ends_the_read_under_way() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(number: int) -> Batch:
        if number == 2:
            begun.set()
            assert go_on.wait(10)
        return Source()(number)

    reader = Reader(slow, last=9, ahead=True)
    reader.batch(1)
    assert begun.wait(10)
    threading.Timer(0.05, go_on.set).start()
    reader.close()
    assert "pico-train-reader" not in {thread.name for thread in threading.enumerate()}
    assert int(reader.batch(3).row_ids[0]) == 3  # a closed one begins anew


def test_a_run_that_reads_ahead_is_the_run_that_does_not(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, their order, losses; no thread is left. Memory is not pinned here, which needs CUDA."""
    at_once = tiny(name="at_once")
    train(at_once, quiet=True)
    monkeypatch.setattr(Runtime, "copies_in_background", True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.contiguous())
    ahead = tiny(name="ahead")
    train(ahead, quiet=True)
    rows = [
        [{**row, "tokens_per_second": 0, "mfu": 0} for row in read_metrics(c.layout.metrics)] for c in (at_once, ahead)
    ]
    assert rows[0] == rows[1]
    assert "pico-train-reader" not in {thread.name for thread in threading.enumerate()}


def test_damage_that_the_thread_meets_is_a_sentence_of_the_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "copies_in_background", True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    take, taken = PackedRows.take, []

    def fails(rows: PackedRows, row_ids: np.ndarray) -> np.ndarray:
        taken.append(threading.current_thread().name)
        if taken.count("pico-train-reader") == 3:
            raise OSError(5, "Input/output error", "train.rows")
        return take(rows, row_ids)

    monkeypatch.setattr(PackedRows, "take", fails)
    config = tiny(**{"evaluate.every": 0, "snapshot.every": 0, "checkpoint.every": 0})
    with pytest.raises(OSError, match="Input/output error"):
        train(config, quiet=True)
    assert [row["step"] for row in read_metrics(config.layout.metrics)] == [1, 2, 3]
