"""Derive every random draw from (seed, purpose, ...) instead of a generator's state.

No draw depends on earlier ones, so that there is no state to save.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit integer from `seed` and `purpose` by sha256, equal on every platform."""
    # A separator that no purpose contains keeps ("a", "bc") apart from ("ab", "c").
    text = "\x1f".join([str(seed), *map(str, purpose)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator seeded with `derive(seed, *purpose)`."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
