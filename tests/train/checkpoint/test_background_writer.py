"""The thread that writes: in order, bounded, and never failing in silence."""

from __future__ import annotations

import errno
import threading

import pytest
from pico_train.checkpoint.background_writer import Writer

PATIENCE = 20.0
"""Seconds after which what is waited for is taken never to come."""


def test_writes_keep_their_order_and_are_there_after_a_flush() -> None:
    writer, done = Writer(), []
    for number in range(50):
        writer.submit(lambda number=number: done.append((number, threading.current_thread())))
    writer.flush()
    assert [number for number, _ in done] == list(range(50))
    assert {thread for _, thread in done} != {threading.current_thread()}
    assert len({thread for _, thread in done}) == 1
    assert writer.close() is None


def test_a_third_write_waits_until_the_first_is_done() -> None:
    writer, gate, done = Writer(), threading.Event(), []
    writer.submit(lambda: gate.wait(PATIENCE) and done.append(1))
    writer.submit(lambda: done.append(2))
    third = threading.Thread(target=lambda: writer.submit(lambda: done.append(3)))
    third.start()
    third.join(0.05)
    assert third.is_alive()
    assert not done
    gate.set()
    third.join(PATIENCE)
    assert writer.close() is None
    assert done == [1, 2, 3]


def test_after_a_failure_nothing_is_written_and_every_call_raises_it() -> None:
    writer, done, failure = Writer(), [], OSError(errno.ENOSPC, "full", "here")

    def fail() -> None:
        raise failure

    writer.submit(fail)
    assert writer.wait() is failure
    for call in (writer.check, writer.wait_for_slot, writer.flush, lambda: writer.submit(lambda: done.append(1))):
        with pytest.raises(OSError, match="full") as caught:
            call()
        assert caught.value is failure
    assert writer.close() is failure
    assert not done


def test_what_waits_behind_a_failure_is_not_written() -> None:
    writer, gate, done = Writer(), threading.Event(), []

    def fail() -> None:
        gate.wait(PATIENCE)
        raise OSError(errno.ENOSPC, "full")

    writer.submit(fail)
    writer.submit(lambda: done.append(1))
    gate.set()
    assert isinstance(writer.close(), OSError)
    assert not done


def test_a_run_that_was_lost_ends_what_is_under_way_and_drops_the_rest() -> None:
    writer, begun, done = Writer(), threading.Event(), []

    def first() -> None:
        begun.set()
        dropped.wait(PATIENCE)
        done.append(1)

    dropped = threading.Event()
    writer.submit(first)
    writer.submit(lambda: done.append(2))
    begun.wait(PATIENCE)
    threading.Timer(0.05, dropped.set).start()
    assert writer.close(drop=True) is None
    assert done == [1]
