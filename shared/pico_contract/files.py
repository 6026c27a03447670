"""Regular files with plain names: a manifest may name no others, and no others are opened for
it."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from pico_contract.errors import DamagedError

MISSING = "is missing"
LINKED = "is a link, and links are not followed: put a copy of the file in its place"


def is_plain_name(name: object) -> bool:
    """Whether `name` is that of a file in the same directory: no separator, drive, `..` or NUL, not
    empty."""
    if not isinstance(name, str) or name in ("", ".", ".."):
        return False
    return not any(character in "/\\\0" for character in name) and not _has_drive(name)


def _has_drive(name: str) -> bool:
    # On Windows `C:name` leads to another drive without any separator.
    return len(name) > 1 and name[1] == ":" and name[0].isalpha()


def irregularity(path: Path) -> str | None:
    """Say why `path` is not a regular file (`is missing`, `is a link, ...`), without following it;
    None if it is one.

    A link may lead out of the run to a file of the reader's own, which must not be hashed, copied
    or exported as content of the run.
    """
    try:
        # lstat does not follow a link, where stat would.
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links
        return f"cannot be read ({error})"
    if stat.S_ISLNK(mode):
        return LINKED
    if not stat.S_ISREG(mode):
        return f"is {_kind_of(mode)} and not a file"
    return None


def _kind_of(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a directory", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")


def read_regular(path: Path) -> bytes:
    """Read a regular file; a link is refused even if it takes the file's place just before it is
    opened.

    Raises:
        DamagedError: it is missing, a link, a directory, a pipe or a device, or cannot be read; it
            names `path`.
    """
    problem = irregularity(path)
    if problem is not None:
        raise DamagedError(f"{path} {'does not exist' if problem == MISSING else problem}")
    try:
        # O_NOFOLLOW, since a link may take the file's place after the look at it. Without
        # O_NONBLOCK, opening a pipe waits for a writer that may never come.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as handle:
            return handle.read()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from None


def read_regular_text(path: Path) -> str:
    """Read a regular file of UTF-8 text, its line ends as they are; errors as `read_regular`."""
    try:
        return read_regular(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is not UTF-8 text ({error})") from None


def sha256_file(path: Path) -> str:
    """Hash a file's bytes: sha256, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
