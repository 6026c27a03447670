"""One writer a run: a lock file that says who holds it, and is taken over when its holder is gone.

Creation is a hard link of a finished file, which is atomic also on NFS; CONTRACT.md lists what
network file systems do not guarantee. A lock is stale if its process has ended on this host, or if
its heartbeat is older than `STALE_SECONDS` (another host, or a process id used again). A stale lock
is taken over under a lock of its own kind, so that of several processes that find it stale exactly
one replaces it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
import uuid
from pathlib import Path
from typing import Any

from pico_contract.directories import make_directory
from pico_contract.errors import UserError
from pico_contract.interrupts import unfinished
from pico_contract.layout import takeover, temporary

STALE_SECONDS = 900.0


class LockHeldError(UserError):
    """Another live process writes this run; the sentence names it."""


class RunLock:
    """The lock of one run directory: `acquire`, then `beat` now and then, then `release`; also a
    context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Host and process id do not identify a holder for ever, because ids are used again.
        self.token = uuid.uuid4().hex
        self.taken_over: str | None = None
        """The sentence to print when a stale lock was taken over, else None."""
        self._last_beat = 0.0
        self._made_directory = False
        self._held = contextlib.ExitStack()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            LockHeldError: a live process holds it.
            UserError: the directory cannot be made or written, or something other than a file has
                the lock's name.
        """
        self._held.enter_context(unfinished())
        while not self._try_create():
            holder = read_lock(self.path)
            if holder is None:
                continue  # it was given back between the two looks: try again
            if not is_stale(holder):
                raise LockHeldError(
                    f"{self.path.parent} is being written by process {holder.get('pid')} on {holder.get('host')}"
                    f" (last sign of life {_age(holder):.0f} s ago); if that is not so, delete {self.path}"
                )
            if self._take_over():
                break
        self._last_beat = time.monotonic()

    def beat(self, every: float = 30.0) -> bool:
        """Renew the heartbeat when `every` seconds have passed; True when it was renewed.

        Raises:
            LockHeldError: the lock was taken over by another process, which now writes the run:
                stop at once.
        """
        if time.monotonic() - self._last_beat < every:
            return False
        holder = read_lock(self.path)
        if holder is None or holder.get("token") != self.token:
            who = (
                f"process {holder.get('pid')} on {holder.get('host')}"
                if holder
                else "somebody who removed it"
            )
            raise LockHeldError(
                f"{self.path} was taken over by {who} while this process was silent"
            )
        # Replaced as a whole, so that no reader sees half a lock and takes it for a stale one.
        draft = self._write_draft()
        draft.replace(self.path)
        self._last_beat = time.monotonic()
        return True

    def release(self) -> None:
        """Give the lock back, and remove a directory that was made for it and that nothing was
        written to.

        Nothing happens if the lock is no longer ours.
        """
        self._held.close()
        try:
            holder = read_lock(self.path)
        except (OSError, UserError):
            return  # a lock that cannot be read is not ours
        if holder is not None and holder.get("token") == self.token:
            self.path.unlink(missing_ok=True)
            if self._made_directory:
                # rmdir refuses a directory that something was written to, which is then kept.
                with contextlib.suppress(OSError):
                    self.path.parent.rmdir()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _write_draft(self) -> Path:
        draft = temporary(self.path, self.token[:8])
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "heartbeat": time.time(),
            "token": self.token,
        }
        draft.write_text(json.dumps(content), encoding="utf-8")
        return draft

    def _try_create(self) -> bool:
        self._made_directory |= make_directory(self.path.parent)
        draft = temporary(self.path, self.token[:8])
        try:
            os.link(self._write_draft(), self.path)
            return True
        except FileExistsError:
            # Over NFS a link that was made may be reported as refused, when the server's first
            # answer was lost.
            return (read_lock(self.path) or {}).get("token") == self.token
        except FileNotFoundError:
            return False  # the holder has swept our draft away as a leftover, or an empty directory with its lock
        finally:
            draft.unlink(missing_ok=True)

    def _take_over(self) -> bool:
        """Replace a stale lock by ours; False when it is no longer stale or gone.

        Raises:
            LockHeldError: another process is about to do the same.
        """
        with RunLock(takeover(self.path)):
            # Read once more: another process may have taken it over before we held the lock of
            # takeovers.
            holder = read_lock(self.path)
            if holder is None or not is_stale(holder):
                return False
            self._write_draft().replace(self.path)
        self.taken_over = f"took over the lock of process {holder.get('pid')} on {holder.get('host')}, which is gone"
        return True


def read_lock(path: Path) -> dict[str, Any] | None:
    """Read a lock file: its content, {} when it cannot be read as JSON, None when there is none.

    Raises:
        UserError: it is not a file.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UserError(f"{path} is not a file, as a lock is: remove what lies there")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def is_stale(holder: dict[str, Any]) -> bool:
    """Whether the process that `holder` (a lock's content) names can be taken to be gone."""
    if _age(holder) > STALE_SECONDS:
        return True
    return holder.get("host") == socket.gethostname() and not _alive(holder.get("pid"))


def _age(holder: dict[str, Any]) -> float:
    heartbeat = holder.get("heartbeat")
    # The wall clock, since the holder may be on another host, whose monotonic clock is another one.
    return time.time() - heartbeat if isinstance(heartbeat, int | float) else float("inf")


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        # Signal 0 is not delivered; the call only says whether the process exists.
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # The process exists and belongs to another user.
    except PermissionError:
        return True
    return True
