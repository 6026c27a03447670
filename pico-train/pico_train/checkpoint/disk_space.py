"""Room on a run's file system: asked for before the first step, and named where it ran out."""

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
    """Room for what a run writes."""

    check: Literal["refuse", "warn", "off"] = "refuse"
    """Before the first step, where the rest of the run does not fit on the disk: quotas and other
    writers, which no check can see, are why it can be a warning, or off."""


def free_bytes(path: Path) -> int:
    """Free on the file system of `path`, which need not exist yet; a quota may allow less."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def check_disk_space(config: DiskConfig, root: Path, needed: int) -> str | None:
    """The warning where the file system of `root` has less than `needed` bytes free; None where it
    has enough.

    Raises:
        UserError: it has less, and `config` is to refuse that.
    """
    free = free_bytes(root)
    if config.check == "off" or needed <= free:
        return None
    sentence = f"the rest of {root} takes up to {in_units(needed)}, and {in_units(free)} are free on its disk"
    if config.check == "warn":
        return sentence
    raise UserError(
        f"{sentence}: make room, keep fewer checkpoints (checkpoint.keep), observe less (snapshot.every, .modules,"
        ' .dtype), or set disk.check to "warn"'
    )


@contextmanager
def explain_disk_full(root: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Where a write of the body finds the disk full, or a quota, say how much is free and what the
    rest would take."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free, rest = in_units(free_bytes(root)), in_units(needed())
        what = f"{error.strerror} ({free} free, where the rest of the run takes up to {rest})"
        raise OSError(error.errno, what, error.filename or str(root)) from error


def in_units(count: float) -> str:
    """Bytes for a person: `1.5 GB`; a kB has 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
