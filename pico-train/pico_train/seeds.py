"""Every random draw derives from (seed, purpose, ...), not from what was drawn before: there is no
state to save."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit integer that is a function of `seed` and `purpose` alone (sha256), equal on every
    platform."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded with `derive(seed, *purpose)`."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
