"""The order of rows as pure index arithmetic: no state, no memory, the same for any number of processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

_ROUNDS = 8


@dataclass(frozen=True)
class RowOrder:
    """Which rows each update reads: a pure function of (fingerprint, seed, step).

    Position p = (step - 1) * batch_size + i of the stream is row permutation_e(p mod n_rows) of epoch e = p div n_rows;
    a batch may span two epochs. The permutation is a keyed Feistel network over the smallest even number of bits that
    holds n_rows, walked along its cycle until it lands below n_rows (Black & Rogaway 2002): O(1) memory for any n_rows.
    """

    n_rows: int
    batch_size: int
    fingerprint: str
    seed: int
    shuffle: bool = True

    def rows(self, step: int) -> np.ndarray:
        """Row ids (batch_size,) int64 of update `step`, counted from 1."""
        position = np.arange(self.batch_size, dtype=np.int64) + (step - 1) * self.batch_size
        epoch, within = np.divmod(position, self.n_rows)
        if not self.shuffle:
            return within
        result = np.empty_like(within)
        for number in np.unique(epoch):
            here = epoch == number
            result[here] = permute(within[here], self.n_rows, self._keys(int(number)))
        return result

    def _keys(self, epoch: int) -> np.ndarray:
        digest = hashlib.sha512(f"{self.fingerprint}\x1f{self.seed}\x1f{epoch}".encode()).digest()
        return np.frombuffer(digest, dtype="<u8")[:_ROUNDS]


def permute(index: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Images of `index` (int64, each below n) under the permutation of range(n) that `keys` (rounds,) uint64 names."""
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
    """sha256 in hex over the previous hash and these row ids (little-endian int64): equal hashes, equal history."""
    return hashlib.sha256(previous.encode() + rows.astype("<i8").tobytes()).hexdigest()
