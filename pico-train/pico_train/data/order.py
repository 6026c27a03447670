"""The order of rows, which is part of the format on disk: `pico_contract.order` has it, for the
audit as well."""

from __future__ import annotations

from pico_contract.order import RowOrder, chain_hash, permute

__all__ = ["RowOrder", "chain_hash", "permute"]
