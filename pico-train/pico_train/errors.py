"""Errors that several rooms raise or name: a peer that failed, a loss that is not finite, the place
of a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pico_contract.errors import UserError


class PeerError(Exception):
    """Another process of this run failed, and says why itself; this one ends with it. Exit code
    1."""


class NonFiniteError(Exception):
    """The loss or a gradient became NaN or infinite; raised before the optimizer steps. Exit code
    1."""


@contextmanager
def error_context(where: str) -> Iterator[None]:
    """Say of a mistake at which place of which file it was made."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{where}: {error}") from None
