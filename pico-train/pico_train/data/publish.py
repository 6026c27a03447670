"""A data directory as it appears: whole or not at all, once, and from sources that have not changed
since."""

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


def is_made(out: Path, settings: dict[str, Any], sources: Sequence[Path] | None) -> str | None:
    """Compare a data directory `out` that is there with `settings` and `sources`; a phrase says
    how, None if it is not.

    `sources` are the files of this machine that making it would read; None where these are no
    longer there.

    Raises:
        UserError: something else lies there; other settings, by name; a source that changed, by
            name.
    """
    if not DataLayout(out).manifest.is_file():
        if os.path.lexists(out):
            raise UserError(f"{out} exists and is not a data directory: choose another `out`")
        return None
    manifest = PackedData.open(out).manifest
    if differing := _differences(manifest.settings, settings):
        raise UserError(
            f"{out} was made with other settings ({', '.join(differing)}): choose another `out`, or delete it"
        )
    if changed := _changed_source(manifest.source_files or [], sources):
        raise UserError(
            f"{out} was made before {changed}: delete {out} to make it of what is there now, or choose another `out`"
        )
    return _compared(manifest.source_files, sources)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key} {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}" for key in changed]


def _leaves(raw: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(raw, dict):
        yield key, raw
        return
    for name, value in raw.items():
        yield from _leaves(value, f"{key}.{name}" if key else name)


def source_records(files: Sequence[Path]) -> list[SourceFile]:
    """Path, size, time of change and sha256 of each of `files`, as data.json keeps them."""
    return [_record(path) for path in files if path.is_file()]


def _record(path: Path) -> SourceFile:
    stat = path.stat()
    return SourceFile(
        path=str(path), size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=session_sha256(path)
    )


def _changed_source(recorded: list[SourceFile], present: Sequence[Path] | None) -> str | None:
    """What became of the sources since: "FILE changed", or None. Files that are gone are not looked
    for."""
    known = {record.path for record in recorded}
    added = [path for path in present or () if recorded and str(path) not in known]
    if added:
        return f"{added[0]} was there"
    if present is not None:
        gone = sorted(known - set(map(str, present)))
        if gone:
            return f"{gone[0]} went"
    for record in recorded:
        path = Path(record.path)
        if not path.is_file():
            continue
        stat = path.stat()
        if stat.st_size == record.size and stat.st_mtime_ns == record.mtime_ns:
            continue
        if stat.st_size != record.size or session_sha256(path) != record.sha256:
            return f"{path} changed"
    return None


def _compared(recorded: list[SourceFile] | None, present: Sequence[Path] | None) -> str:
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

    What an interrupted preparation of this name left is removed first, unless a process still
    writes it. SIGTERM ends the program after what was written has been removed.
    """
    _remove_leftovers(out, say)
    with _terminating_in_order(), codec.publish(out) as draft, _claimed(draft):
        yield draft


def _remove_leftovers(out: Path, say: Say) -> None:
    for path in sorted(out.parent.iterdir()) if out.parent.is_dir() else ():
        tag = path.name.rpartition("-")[2]
        if (
            path.name != temporary(out, tag).name
            or not re.fullmatch("[0-9a-f]{8}", tag)
            or not path.is_dir()
        ):
            continue
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
    """Lock a directory while it is written, so that no other preparation takes it for a
    leftover."""
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _terminating_in_order() -> Iterator[None]:
    """Let SIGTERM end the program as an exception, with the exit code that a shell gives it."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
