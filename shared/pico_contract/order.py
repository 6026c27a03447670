"""The order of rows as pure index arithmetic: no state, no memory, the same for any number of
processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

_ROUNDS = 8


@dataclass(frozen=True)
class RowOrder:
    """Which rows each update reads: a pure function of (fingerprint, seed, step).

    Position p = (step - 1) * batch_size + i of the stream is row permutation_e(p mod n_rows) of
    epoch e = p div n_rows; a batch may span two epochs. The permutation is a keyed Feistel network
    over the smallest even number of bits that holds n_rows, walked along its cycle until it lands
    below n_rows (Black & Rogaway 2002): O(1) memory for any n_rows.

    With `blocks` (the rows of each shard of a stream, n_rows in all) an epoch reads the shards one
    after the other, in a permuted order, and permutes the rows within each, so that a batch needs
    one or two shards instead of all.
    """

    n_rows: int
    batch_size: int
    fingerprint: str
    seed: int
    shuffle: bool = True
    blocks: tuple[int, ...] = ()

    def rows(self, step: int) -> np.ndarray:
        """Row ids (batch_size,) int64 of update `step`, counted from 1."""
        position = np.arange(self.batch_size, dtype=np.int64) + (step - 1) * self.batch_size
        epoch, within = np.divmod(position, self.n_rows)
        if not self.shuffle:
            return within
        result = np.empty_like(within)
        for number in np.unique(epoch):
            here = epoch == number
            result[here] = self._shuffled(within[here], int(number))
        return result

    def ahead(self, step: int, last: int) -> np.ndarray:
        """Row ids of the update up to `last` that comes so much later that the longest block was
        read in between."""
        return self.rows(min(step + -(-max(self.blocks, default=0) // self.batch_size), last))

    def _shuffled(self, within: np.ndarray, epoch: int) -> np.ndarray:
        """The rows at the places `within` of an epoch."""
        if not self.blocks:
            return permute(within, self.n_rows, self._keys(epoch))
        sizes = np.asarray(self.blocks, dtype=np.int64)
        sequence = permute(np.arange(len(sizes)), len(sizes), self._keys(epoch))
        ends, starts = np.cumsum(sizes[sequence]), np.cumsum(sizes) - sizes
        turn = np.searchsorted(ends, within, side="right")
        result = np.empty_like(within)
        for number in np.unique(turn):
            here, block = turn == number, int(sequence[number])
            place = within[here] - (ends[number] - sizes[block])
            result[here] = starts[block] + permute(
                place, int(sizes[block]), self._keys(epoch, block)
            )
        return result

    def _keys(self, *place: int) -> np.ndarray:
        """Keys for the permutation of an epoch, or of a block in an epoch."""
        digest = hashlib.sha512(
            "\x1f".join(map(str, (self.fingerprint, self.seed, *place))).encode()
        ).digest()
        return np.frombuffer(digest, dtype="<u8")[:_ROUNDS]


def permute(index: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Images of `index` (int64, each below n) under the permutation of range(n) that `keys`
    (rounds,) uint64 names."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    values = index.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= np.uint64(n)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of 2 * half bits."""
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014); wraps modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def chain_hash(previous: str, rows: np.ndarray) -> str:
    """sha256 in hex over the previous hash and these row ids (little-endian int64): equal hashes,
    equal history."""
    return hashlib.sha256(previous.encode() + rows.astype("<i8").tobytes()).hexdigest()
