"""Errors of several rooms: a failed peer, a loss that is not finite, the context of a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pico_contract.errors import UserError


class PeerError(Exception):
    """Another process of this run failed and reports the reason; this one ends too. Exit code 1."""


class NonFiniteError(Exception):
    """The loss or a gradient is NaN or infinite, before the optimizer stepped. Exit code 1."""


@contextmanager
def error_context(where: str) -> Iterator[None]:
    """Put the file or the key of a mistake in front of its `UserError`."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{where}: {error}") from None
