"""Publishing a data directory: it appears whole or not at all, once, and knows its sources."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from pico_contract import codec
from pico_contract.digests import session_sha256
from pico_contract.errors import UserError
from pico_contract.layout import DataLayout, temporary
from pico_contract.schema import SourceFile

from pico_train.data.packed import PackedData

Say = Callable[[str], None]
"""A function that shows one line to the user."""


def is_made(out: Path, settings: dict[str, Any], sources: Sequence[Path] | None) -> str | None:
    """Return how the existing data directory `out` was compared; None if it does not exist.

    `settings` are those that making it would use; `sources` are the local files that it would read,
    or None if these no longer exist.

    Raises:
        UserError: something else lies there; other settings, by name; a source that changed, by
            name.
    """
    if not DataLayout(out).manifest.is_file():
        if os.path.lexists(out):
            raise UserError(f"{out} exists and is not a data directory: choose another `out`")
        return None
    manifest = PackedData.open(out).manifest
    differences = _differences(manifest.settings, settings)
    if differences:
        raise UserError(
            f"{out} was made with other settings ({', '.join(differences)}): choose another `out`, or delete it"
        )
    # Equal settings with other files would give other rows.
    change = _source_change(manifest.source_files or [], sources)
    if change is not None:
        raise UserError(
            f"{out} was made before {change}: delete {out} to make it of what is there now, or choose another `out`"
        )
    return _comparison(manifest.source_files, sources)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return `key old -> new` for every setting that differs."""
    old = dict(_leaves(before))
    new = dict(_leaves(now))
    differences = []
    for key in {**old, **new}:
        old_value, new_value = old.get(key), new.get(key)
        if old_value == new_value:
            continue
        change = f"{json.dumps(old_value)} -> {json.dumps(new_value)}"
        differences.append(f"{key} {change}")
    return differences


def _leaves(raw: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested mappings."""
    if not isinstance(raw, dict):
        yield key, raw
        return
    for name, value in raw.items():
        yield from _leaves(value, f"{key}.{name}" if key else name)


def source_records(files: Sequence[Path]) -> list[SourceFile]:
    """Return path, size, modification time and sha256 of each existing file, as in data.json."""
    return [_record(path) for path in files if path.is_file()]


def _record(path: Path) -> SourceFile:
    stat = path.stat()
    return SourceFile(
        path=str(path),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        sha256=session_sha256(path),
    )


def _source_change(recorded: list[SourceFile], present: Sequence[Path] | None) -> str | None:
    """Describe the first change of the sources, such as "FILE changed"; None if there is none.

    If the sources cannot be listed (`present` is None), only recorded files that exist count.
    """
    if present is not None and recorded:
        # A directory source may have gained or lost files.
        known, current = {record.path for record in recorded}, [str(path) for path in present]
        for path in current:
            if path not in known:
                return f"{path} was there"
        gone = sorted(known - set(current))
        if gone:
            return f"{gone[0]} went"
    for record in recorded:
        if Path(record.path).is_file() and _is_changed(record):
            return f"{record.path} changed"
    return None


def _is_changed(record: SourceFile) -> bool:
    """Return whether a file's content differs; equal size and time count as equal content."""
    path = Path(record.path)
    stat = path.stat()
    if stat.st_size != record.size:
        return True
    return stat.st_mtime_ns != record.mtime_ns and session_sha256(path) != record.sha256


def _comparison(recorded: list[SourceFile] | None, present: Sequence[Path] | None) -> str:
    """Say how the sources were compared with those of the data directory."""
    if recorded is None:
        return "an earlier version made it, so that its source is not compared"
    if not recorded:
        return "its source is not compared: it is not made of files of this machine"
    if present is None or not all(Path(record.path).is_file() for record in recorded):
        return "a file of its source is no longer there, so that it is not compared"
    return "its source has not changed since, by size and time"


@contextlib.contextmanager
def publish_data(out: Path, say: Say) -> Iterator[Path]:
    """Write a data directory so that it appears whole or not at all, as `codec.publish` does.

    Leftovers of an interrupted preparation of the same name are removed first, unless a process
    still writes them. SIGTERM ends the program after the unfinished directory was removed.
    """
    _remove_leftovers(out, say)
    with _terminating_in_order(), codec.publish(out) as draft, _claimed(draft):
        # SIGTERM within this block removes the draft.
        yield draft


def _remove_leftovers(out: Path, say: Say) -> None:
    for path in sorted(out.parent.iterdir()) if out.parent.is_dir() else ():
        if path.is_dir() and _is_draft_of(out, path):
            _remove_unless_locked(out, path, say)


def _is_draft_of(out: Path, path: Path) -> bool:
    """Return whether `path` has the name of an unfinished `out`."""
    # codec.publish names its drafts NAME-TAG with eight hex digits.
    tag = path.name.rpartition("-")[2]
    return (
        path.name == temporary(out, tag).name and re.fullmatch("[0-9a-f]{8}", tag) is not None
    )


def _remove_unless_locked(out: Path, path: Path, say: Say) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
        say(f"removed {path}, which an interrupted preparation left")
    except OSError:  # locked, or a file system without locks
        say(
            f"{path} is another preparation of {out}, or what one left: delete it when none is running"
        )
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _claimed(draft: Path) -> Iterator[None]:
    """Lock a directory while it is written, so that other preparations do not remove it."""
    # The kernel drops the lock when the process ends, however it ends.
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _terminating_in_order() -> Iterator[None]:
    """Let SIGTERM end the program as an exception, with the exit code that a shell expects."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
