"""The order of rows in closed form: every property that the contract promises of it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_contract.order import RowOrder, chain_hash, permute


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_a_permutation_of_any_size_has_every_image_once(n: int, keys: list[int]) -> None:
    images = permute(np.arange(n), n, np.array(keys, dtype=np.uint64))
    assert sorted(images) == list(range(n))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 7), st.integers(0, 5))
def test_an_epoch_reads_whole_blocks_one_after_the_other(blocks: list[int], batch_size: int, seed: int) -> None:
    n_rows = sum(blocks)
    order = RowOrder(n_rows, batch_size, "f", seed, blocks=tuple(blocks))
    rows = np.concatenate([order.rows(step) for step in range(1, n_rows + 1)])[:n_rows]
    assert sorted(rows) == list(range(n_rows))
    block_of = np.repeat(np.arange(len(blocks)), blocks)[rows]
    assert np.count_nonzero(np.diff(block_of)) == len(blocks) - 1


def test_without_shuffling_rows_are_counted_through() -> None:
    order = RowOrder(5, 3, "f", 0, shuffle=False)
    assert [order.rows(step).tolist() for step in (1, 2, 3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


@pytest.mark.parametrize(("blocks", "later"), [((), 0), ((4, 2), 2), ((3, 3), 2), ((7,), 4)])
def test_rows_ahead_are_those_after_the_longest_block(blocks: tuple[int, ...], later: int) -> None:
    order = RowOrder(sum(blocks) or 6, 2, "f", 0, blocks=blocks)
    assert np.array_equal(order.ahead(1, 100), order.rows(1 + later))
    assert np.array_equal(order.ahead(1, 1), order.rows(1))


def test_the_chained_hash_is_sha256_over_the_last_one_and_the_rows() -> None:
    rows = np.array([3, 1], dtype=np.int32)
    content = (3).to_bytes(8, "little") + (1).to_bytes(8, "little")
    first = hashlib.sha256(content).hexdigest()
    assert chain_hash("", rows) == first
    assert chain_hash(first, rows) == hashlib.sha256(first.encode() + content).hexdigest()
