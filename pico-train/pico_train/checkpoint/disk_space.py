"""Check the free disk space before a run's first step, and state it in the error of a full disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pico_contract.errors import UserError

from pico_train.config import Section


class DiskConfig(Section):
    """Check of the free disk space."""

    check: Literal["refuse", "warn", "off"] = "refuse"
    """Response before the first step to a disk that is too small for the rest of the run. It can be
    a warning, or off, since the check cannot see quotas and other writers."""


def free_bytes(path: Path) -> int:
    """Return the free bytes on the file system of `path`, which need not exist yet.

    A quota may allow less.
    """
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def check_disk_space(config: DiskConfig, root: Path, needed: int) -> str | None:
    """Return a warning if the file system of `root` has fewer than `needed` bytes free.

    Raises:
        UserError: it has fewer, and `config.check` is "refuse".
    """
    free = free_bytes(root)
    if config.check == "off" or needed <= free:
        return None
    sentence = f"the rest of {root} takes up to {in_units(needed)}, and {in_units(free)} are free on its disk"
    # A warning leaves the decision to the user, who may know of a quota or of files to go.
    if config.check == "warn":
        return sentence
    raise UserError(
        f"{sentence}: make room, keep fewer checkpoints (checkpoint.keep), observe less (snapshot.every, .modules,"
        ' .dtype), or set disk.check to "warn"'
    )


@contextmanager
def explain_disk_full(root: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Add to the error of a full disk or quota how much is free, and how much the run needs."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free, rest = in_units(free_bytes(root)), in_units(needed())
        sentence = (
            f"{error.strerror} ({free} free, where the rest of the run takes up to {rest})"
        )
        raise OSError(error.errno, sentence, error.filename or str(root)) from error


def in_units(count: float) -> str:
    """Format bytes for people, such as `1.5 GB`; a kB is 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
