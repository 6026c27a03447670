"""The order of rows: permutations, the frozen format, and independence of everything but (fingerprint, seed, step)."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_train.data.order import RowOrder, chain_hash
from pico_train.run import RunConfig, build
from scipy import stats

AWKWARD = sorted({1, 2, 3} | {n for k in (2, 3, 4, 5, 8, 10) for n in (2**k - 1, 2**k, 2**k + 1)})
"""Sizes at which the number of bits, and with it the cycle walking, changes."""


def order(n_rows: int, batch_size: int, **changes: Any) -> RowOrder:
    return RowOrder(**{"n_rows": n_rows, "batch_size": batch_size, "fingerprint": "f", "seed": 0, **changes})


def epoch_of(n_rows: int, epoch: int = 0, **changes: Any) -> list[int]:
    return order(n_rows, n_rows, **changes).rows(epoch + 1).tolist()


@pytest.mark.parametrize("n_rows", AWKWARD)
def test_every_epoch_reads_every_row_once(n_rows: int) -> None:
    for epoch in range(3):
        assert sorted(epoch_of(n_rows, epoch)) == list(range(n_rows))


@settings(deadline=None)
@given(n_rows=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_an_epoch_of_any_size_seed_and_number_is_a_permutation(n_rows: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_of(n_rows, epoch, seed=seed)) == list(range(n_rows))


@settings(deadline=None)
@given(n_rows=st.integers(1, 60), batch_size=st.integers(1, 150), steps=st.integers(1, 5))
def test_batches_of_any_size_cut_one_and_the_same_stream(n_rows: int, batch_size: int, steps: int) -> None:
    """A batch may span epochs, several of them where it is larger than the data; every row keeps its turn."""
    rows = order(n_rows, batch_size)
    stream = np.concatenate([rows.rows(step) for step in range(1, steps + 1)])
    epochs = [epoch_of(n_rows, epoch) for epoch in range(len(stream) // n_rows + 1)]
    assert stream.tolist() == [row for epoch in epochs for row in epoch][: len(stream)]


def test_a_step_can_be_asked_for_alone_and_in_any_order() -> None:
    """There is no state: what was read before does not matter."""
    rows = order(37, 8)
    forwards = [rows.rows(step).tolist() for step in range(1, 30)]
    backwards = [order(37, 8).rows(step).tolist() for step in range(29, 0, -1)]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("change", [{"seed": 1}, {"fingerprint": "g"}])
def test_seed_and_fingerprint_choose_the_permutation(change: dict[str, Any]) -> None:
    assert epoch_of(100) == epoch_of(100)
    assert epoch_of(100) != epoch_of(100, **change)


def test_epochs_differ() -> None:
    assert len({tuple(epoch_of(100, epoch)) for epoch in range(50)}) == 50


def test_the_micro_batch_is_no_part_of_the_order(tiny: Callable[..., RunConfig]) -> None:
    read = [build(tiny(**{"train.micro_batch_size": size})).loader.order.rows(3).tolist() for size in (8, 4, 1)]
    assert read[0] == read[1] == read[2]


def test_seed_and_epoch_are_not_confused() -> None:
    """Were the two joined without a mark between them, seed 1 in epoch 11 would be seed 11 in epoch 1."""
    assert epoch_of(100, 11, seed=1) != epoch_of(100, 1, seed=11)


def test_sequential_order_counts_through_the_rows_and_starts_again() -> None:
    rows = order(5, 3, shuffle=False)
    assert [rows.rows(step).tolist() for step in (1, 2, 3, 4)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]


GOLDEN = [
    ((1, 3, 0, 1), [0, 0, 0]),
    ((2, 4, 0, 1), [0, 1, 0, 1]),
    ((3, 6, 0, 1), [0, 2, 1, 2, 1, 0]),
    ((10, 10, 0, 1), [6, 5, 4, 9, 8, 7, 0, 2, 3, 1]),
    ((10, 10, 0, 2), [6, 9, 0, 1, 4, 8, 3, 5, 2, 7]),
    ((10, 10, 1, 1), [7, 6, 0, 4, 3, 5, 9, 2, 1, 8]),
    ((1000, 5, 42, 123), [751, 151, 941, 184, 998]),
    ((204_800_000, 4, 42, 200_000), [37497405, 126743009, 60476438, 36881255]),
    ((10**12, 3, 7, 10**9), [759827684829, 551841500906, 681759452153]),
]


@pytest.mark.parametrize(("setting", "expected"), GOLDEN)
def test_golden_rows(setting: tuple[int, int, int, int], expected: list[int]) -> None:
    """These literals are the format and must never change: a recorded run names its rows only by fingerprint and seed.

    They were computed a second time with Python's integers of unbounded size, from the definition alone. A test that
    fails here says that the training data of every published run can no longer be told.
    """
    n_rows, batch_size, seed, step = setting
    assert order(n_rows, batch_size, fingerprint="golden", seed=seed).rows(step).tolist() == expected


def test_memory_is_that_of_the_batch_however_many_rows_there_are() -> None:
    rows = order(10**12, 1024)
    rows.rows(1)
    tracemalloc.start()
    try:
        found = rows.rows(10**8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.shape == (1024,)
    assert len(set(found.tolist())) == 1024
    assert 0 <= found.min() <= found.max() < 10**12
    assert peak < 64 * found.nbytes


@pytest.mark.parametrize("n_rows", [3, 10, 16, 17])
def test_every_row_comes_first_and_second_equally_often(n_rows: int) -> None:
    """Chi-square over the ordered pairs (first row, second row) of 4,000 seeds, which are fixed."""
    seeds = 4000
    pairs = [tuple(order(n_rows, 2, seed=seed).rows(1).tolist()) for seed in range(seeds)]
    counts = np.zeros((n_rows, n_rows))
    np.add.at(counts, tuple(np.array(pairs).T), 1)
    assert not counts.diagonal().any()
    assert stats.chisquare(counts[~np.eye(n_rows, dtype=bool)]).pvalue > 1e-3


def test_consecutive_rows_are_spread_over_the_data() -> None:
    """Neighbours in the stream fall into the 20 x 20 cells of (row, next row) evenly."""
    stream = np.array(epoch_of(20_000))
    cells = np.bincount((stream[:-1] // 1000) * 20 + stream[1:] // 1000, minlength=400)
    assert stats.chisquare(cells).pvalue > 1e-3


def test_chain_hash_is_sha256_over_the_last_hash_and_the_row_ids() -> None:
    first = chain_hash("", np.array([3, 1, 2]))
    assert first == hashlib.sha256(b"".join(i.to_bytes(8, "little") for i in (3, 1, 2))).hexdigest()
    assert first == "7c4cec7a82e1aa578a08e41043044a9bfed3839e107aef17f4bf292878784259"
    second = chain_hash(first, np.array([0]))
    assert second == hashlib.sha256(first.encode() + bytes(8)).hexdigest()


def test_chain_hash_tells_histories_apart() -> None:
    histories = [[[1, 2], [3]], [[2, 1], [3]], [[1, 2], [4]], [[3], [1, 2]], [[1], [2, 3]]]
    hashes = set()
    for history in histories:
        digest = ""
        for rows in history:
            digest = chain_hash(digest, np.array(rows))
        hashes.add(digest)
    assert len(hashes) == len(histories)


def test_chain_hash_does_not_depend_on_the_integer_type() -> None:
    assert chain_hash("a", np.array([5, 6], dtype=np.int32)) == chain_hash("a", np.array([5, 6], dtype=">i8"))
