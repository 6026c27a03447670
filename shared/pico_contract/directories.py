"""Directories that a user names for output: they are made, or refused at once with what is in the
way."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from pico_contract.errors import UserError, shorten

LONGEST_NAME = 228
"""Bytes of a name; file systems allow 255, and a directory is written under a longer temporary
name."""
MISTAKES = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EINVAL,
    errno.EISDIR,
)
"""Errors of a path that was named by mistake; others are failures of the system."""
_ATTEMPTS = 100


def check_directory(path: Path) -> None:
    """Refuse `path` where no directory can be made or written; nothing is changed.

    Raises:
        UserError: a file or a link to nothing is in the way, a name is too long, or the place is
            not writable.
    """
    for place in (path, *path.parents):
        status = _status(place)
        if status is not None:
            _check_place(path, place, status)
            return
        _check_name(place)


def exit_code_of(error: OSError) -> int:
    """Return 2 if a path was named that cannot exist, 1 for a failure of the system."""
    return UserError.exit_code if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else 1


def make_directory(path: Path) -> bool:
    """Make a directory with its parents; return whether it was not there before.

    Raises:
        UserError: as `check_directory`.
        OSError: the disk is full or fails.
    """
    for _ in range(_ATTEMPTS):
        check_directory(path)
        try:
            # Without exist_ok, which would hide whether the directory was made here.
            path.mkdir(parents=True)
            return True
        except FileExistsError:
            if path.is_dir():
                return False
        except FileNotFoundError:
            pass  # another process removed a parent meanwhile
        except OSError as error:
            if error.errno not in MISTAKES:
                raise
            raise UserError(
                f"{shorten(str(path), 300)} cannot be made: {error.strerror}"
            ) from None
    raise UserError(f"{shorten(str(path), 300)} cannot be made: choose another directory")


def _status(place: Path) -> os.stat_result | None:
    """Look at what lies at `place`, without following a link; None if nothing does."""
    try:
        return place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            return None  # a parent is a link that leads to itself, and is named instead
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{shorten(str(place), 300)} cannot be a directory: {reason}") from None


def _check_place(path: Path, place: Path, status: os.stat_result) -> None:
    """Refuse `place`, the nearest existing one above `path`, if it is not a directory that can be
    written."""
    subject = str(path) if place == path else f"{path} cannot be made: {place}"
    if stat.S_ISLNK(status.st_mode):
        status = _target_status(place, subject)
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(
            f"{subject} is not a directory: choose another place, or remove what lies there"
        )
    is_writable = os.access(place, os.W_OK | os.X_OK)
    # A directory may have gone meanwhile, with the lock of another process; then nothing is in the
    # way.
    if not is_writable and place.exists():
        raise UserError(
            f"{subject} is not writable: choose another directory, or change its permissions"
        )


def _target_status(link: Path, subject: str) -> os.stat_result:
    target = os.readlink(link)
    try:
        return link.stat()
    except FileNotFoundError:
        reason = "does not exist: make it, or remove the link"
    except OSError as error:
        reason = f"cannot be followed ({error.strerror}): remove the link"
    raise UserError(f"{subject} is a link to {target}, which {reason}")


def _check_name(place: Path) -> None:
    size = len(os.fsencode(place.name))
    if size > LONGEST_NAME:
        raise UserError(
            f'the name "{shorten(place.name)}" has {size} bytes; use {LONGEST_NAME} at most'
        )
