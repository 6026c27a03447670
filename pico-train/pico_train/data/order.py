"""The order of rows, re-exported: it is part of the on-disk format, so the contract defines it."""

from __future__ import annotations

# The audit of pico-analyze computes the same order without pico-train.
from pico_contract.order import RowOrder, chain_hash, permute

__all__ = ["RowOrder", "chain_hash", "permute"]
