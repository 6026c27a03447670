"""Hashes of files that a session reads more than once: each is computed once while the file is
unchanged."""

from __future__ import annotations

import os
from pathlib import Path

from pico_contract.files import sha256_file

_Stamp = tuple[int, int, int, int, int]

_known: dict[Path, tuple[_Stamp, str]] = {}
"""Absolute path -> the file's stamp when it was hashed, and its sha256; of this process alone."""


def session_sha256(path: Path) -> str:
    """Hash a file's bytes (sha256, hex), reading them once a process while the file is not replaced
    or written to.

    The file system's change time is part of what is compared, which a user cannot set: an archive
    unpacked over the file with the same size and modification time is read again. A later session
    reads everything again.

    Raises:
        OSError: the file cannot be read.
    """
    absolute = Path(os.path.abspath(path))
    stamp = _stamp(absolute)
    known = _known.get(absolute)
    if known is None or known[0] != stamp:
        known = _known[absolute] = stamp, sha256_file(absolute)
    return known[1]


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    # The change time cannot be set by a user, unlike the modification time.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
