"""The text of a configuration file: a regular file of bounded size, in UTF-8."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pico_contract.errors import UserError, shorten

MAX_BYTES = 1 << 20
"""Size of a file or an override; a configuration has a few thousand bytes."""


def read_text(path: Path) -> str:
    """Read a text file of at most `MAX_BYTES` in UTF-8; a byte order mark is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a regular file, cannot be read, is too large, or is not UTF-8.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{path} is not a regular file: save the configuration to one")
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{shorten(str(path))} cannot be read as a configuration file: {reason}"
        ) from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than a configuration may be ({MAX_BYTES:,} bytes)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = f"byte 0x{content[error.start]:02x} at offset {error.start:,}"
        raise UserError(f"{path} is not text in UTF-8 ({position}): save it as UTF-8") from None
