"""The order of rows as pure index arithmetic: no state, no memory, the same for any number of
processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

_ROUNDS = 8


@dataclass(frozen=True)
class RowOrder:
    """The rows that each update reads: a pure function of (fingerprint, seed, step).

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
        """Return the row ids (batch_size,) int64 of update `step`, counted from 1."""
        start = (step - 1) * self.batch_size
        position = np.arange(self.batch_size, dtype=np.int64) + start
        epoch, within = np.divmod(position, self.n_rows)
        if not self.shuffle:
            return within
        result = np.empty_like(within)
        for number in np.unique(epoch):
            here = epoch == number
            result[here] = self._shuffled(within[here], int(number))
        return result

    def ahead(self, step: int, last: int) -> np.ndarray:
        """Return the row ids of an update so much later that the longest block is read in between,
        `last` at most."""
        longest = max(self.blocks, default=0)
        updates = -(-longest // self.batch_size)
        return self.rows(min(step + updates, last))

    def _shuffled(self, within: np.ndarray, epoch: int) -> np.ndarray:
        """Return the rows at the places `within` of an epoch."""
        if not self.blocks:
            return permute(within, self.n_rows, self._keys(epoch))
        sizes = np.asarray(self.blocks, dtype=np.int64)
        first_rows = np.cumsum(sizes) - sizes
        # The epoch reads block sequence[0] first, up to the place ends[0], then block sequence[1],
        # and so on.
        sequence = permute(np.arange(len(sizes)), len(sizes), self._keys(epoch))
        ends = np.cumsum(sizes[sequence])
        turn = np.searchsorted(ends, within, side="right")
        result = np.empty_like(within)
        for number in np.unique(turn):
            block = int(sequence[number])
            size = int(sizes[block])
            keys = self._keys(epoch, block)
            here = turn == number
            begin = ends[number] - size
            row = permute(within[here] - begin, size, keys)
            result[here] = first_rows[block] + row
        return result

    def _keys(self, *place: int) -> np.ndarray:
        """Derive the keys for the permutation of an epoch, or of a block in an epoch."""
        text = "\x1f".join(map(str, (self.fingerprint, self.seed, *place)))
        digest = hashlib.sha512(text.encode()).digest()
        return np.frombuffer(digest, dtype="<u8")[:_ROUNDS]


def permute(index: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Map `index` (int64, each below n) by the permutation of range(n) that `keys` (rounds,) uint64
    names."""
    bits = (n - 1).bit_length()
    half = max(1, (bits + 1) // 2)
    values = index.astype(np.uint64)
    # A bijection of 2 * half bits may leave range(n). Walking along its cycle comes back, and stays
    # a bijection.
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= np.uint64(n)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """Apply a bijection of 2 * half bits."""
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left = values >> shift
    right = values & mask
    for key in keys:
        mixed = _mix(right ^ key) & mask
        left, right = right, left ^ mixed
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix bits by the finaliser of splitmix64 (Steele et al. 2014), which wraps modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def chain_hash(previous: str, rows: np.ndarray) -> str:
    """Hash the previous hash and these row ids (little-endian int64): equal hashes mean equal
    history."""
    content = previous.encode() + rows.astype("<i8").tobytes()
    return hashlib.sha256(content).hexdigest()
