"""Files of a data set on the hub: listed, read in part, downloaded into a bounded cache.

Errors that pass (a busy or failing server, a dropped connection) are retried with growing pauses,
by the hub's own client if it can. Errors that do not pass (no access, no such file) end in one
sentence.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import io
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import huggingface_hub as hub
from huggingface_hub import errors
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
    http_stream_backoff,
)
from pico_contract import codec
from pico_contract.errors import UserError, did_you_mean

from pico_train.data.shards import Shard, alteration

_TRIES = 8
"""Tries of a request; eight last about four minutes."""
_LONGEST_PAUSE = 60.0  # seconds
_TIMEOUT = 60.0  # seconds without an answer
_BLOCK = 1 << 20
_FOOTER = 1 << 16  # most footers are shorter, so that one request serves
_BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP statuses of errors that pass."""

_REMEDIES = {
    401: ": log in with `hf auth login`",
    403: ": ask for access on the hub",
    404: ": it is not there",
}
"""Ends of messages about HTTP statuses that refuse a request."""
_PATIENT: dict[str, Any] = {
    "max_retries": _TRIES,
    "max_wait_time": _LONGEST_PAUSE,
    "timeout": _TIMEOUT,
}
"""Arguments of the hub's client that set its retries."""
_ABANDONED = 24 * 3600  # seconds after which no process still writes a file


class HubRepo:
    """A data set at one commit."""

    def __init__(self, repo: str, revision: str | None) -> None:
        """Ask the hub for the commit that `revision` names.

        `revision` is a branch, tag or commit; None is the default branch.

        Raises:
            UserError: no such data set or revision, or no access.
            ConnectionError: no answer.
        """
        self.repo = repo
        with _sentences(f"the data set {repo}"):
            self.commit = str(
                hub.HfApi().dataset_info(repo, revision=revision, timeout=_TIMEOUT).sha
            )

    def shards(self, pattern: str) -> list[tuple[str, int, str]]:
        """Return (file, bytes, sha256) of the files that the glob `pattern` matches, by name."""
        files = self._files()
        names = sorted(fnmatch.filter(files, pattern))
        if not names:
            raise UserError(
                f'{self.repo} has no file "{pattern}"{did_you_mean(pattern, files)}'
            )
        shards = []
        for name in names:
            file = files[name]
            if file.lfs is None:  # the hub hashes only large files
                raise UserError(
                    f"{self.repo} lists no sha256 of {name}: download it, and fetch from that directory"
                )
            shards.append((name, file.size, file.lfs.sha256))
        return shards

    def _files(self) -> dict[str, RepoFile]:
        with _sentences(f"the data set {self.repo}"):
            tree = hub.HfApi().list_repo_tree(
                self.repo, recursive=True, revision=self.commit, repo_type="dataset"
            )
            return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def footer(self, file: str, size: int) -> Any:
        """Return the Parquet metadata of a file, of which only the end is read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        # One request serves for most footers.
        end = self._bytes(file, max(size - _FOOTER, 0), size)
        # A Parquet file ends in its footer, the footer's length (4 bytes) and "PAR1".
        length = int.from_bytes(end[-8:-4], "little") + 8
        if length > len(end):
            end = self._bytes(file, max(size - length, 0), size)
        try:
            return pq.read_metadata(io.BytesIO(b"PAR1" + end[-length:]))
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{self.repo}: {file} is not a Parquet file ({' '.join(str(error).split())})"
            ) from None

    def _bytes(self, file: str, start: int, stop: int) -> bytes:
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
        url = hub.hf_hub_url(self.repo, file, repo_type="dataset", revision=self.commit)
        with _sentences(f"{self.repo}: {file}"):
            response = http_backoff("GET", url, headers=headers, **_PATIENT)
            hf_raise_for_status(response)
        return response.content


class HubFiles:
    """The shards of one commit, downloaded when they are announced or requested.

    Processes of one machine may share the cache: a lock on each file lets one of them download
    it. The files are the only state: their modification times say when they were last used.
    """

    def __init__(
        self, repo: str, commit: str, cache: Path, cache_gib: float, largest: int
    ) -> None:
        self._repo, self._commit = repo, commit
        self._root = cache / repo.replace("/", "--") / commit
        self._budget = int(cache_gib * 2**30)
        if 3 * largest > self._budget:
            raise UserError(
                f"data.stream.cache_gib is {cache_gib:g}, too little for three shards (of {largest / 2**30:.3g} GiB) of"
                f" {repo}: one being read, one downloaded, one that a batch began in"
            )
        self._lock = threading.Lock()
        self._requested: dict[str, Future[Path]] = {}
        self._downloading: dict[str, int] = {}  # file -> bytes

    def path(self, shard: Shard) -> Path:
        """Return the path of the shard in the cache, intact; waits for its download."""
        while True:
            path = self._request(shard).result()
            # The file may have been deleted since, here or by another process: then try again.
            with contextlib.suppress(FileNotFoundError):
                now = time.time_ns()
                # The kernel would set a time in milliseconds, too coarse for the order of use.
                os.utime(path, ns=(now, now))
                return path
            self._requested.pop(shard.file, None)

    def prefetch(self, shard: Shard) -> None:
        """Begin to download the shard."""
        self._request(shard)

    def path_of(self, shard: Shard) -> Path:
        """Return the shard's path in the cache."""
        return self._root / shard.file

    def _request(self, shard: Shard) -> Future[Path]:
        """Return the download of a shard, begun now unless it runs or has succeeded."""
        with self._lock:
            request = self._requested.get(shard.file)
            has_failed = (
                request is not None and request.done() and request.exception() is not None
            )
            if request is None or has_failed:
                request = self._requested[shard.file] = Future()
                # A daemon thread, because the end of the process must not wait for a download.
                threading.Thread(
                    target=self._fulfil, args=(request, shard), daemon=True
                ).start()
            return request

    def _fulfil(self, request: Future[Path], shard: Shard) -> None:
        try:
            request.set_result(self._ensure(shard))
        except BaseException as error:  # raised in the thread that asks for the file
            request.set_exception(error)

    def _ensure(self, shard: Shard) -> Path:
        """Return the shard's path; download it if it is absent or altered."""
        path = self._root / shard.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_name(f".{path.name}.lock")):
            # Checked within the lock: another process may have downloaded it meanwhile.
            if not path.is_file() or alteration(path, shard) is not None:
                path.unlink(missing_ok=True)
                self._reserve(shard)
                try:
                    self._download(shard, path)
                finally:
                    with self._lock:
                        del self._downloading[shard.file]
        return path

    def _reserve(self, shard: Shard) -> None:
        """Delete files, the least recently used first, until this one fits into the budget."""
        with self._lock:
            self._downloading[shard.file] = shard.size
            files = sorted(self._cached(), key=lambda file: file[1].st_mtime_ns)
            # Running downloads count in full, since they will take that much.
            used = sum(stat.st_size for _, stat in files) + sum(self._downloading.values())
            for path, stat in files:
                if used <= self._budget:
                    return
                path.unlink(missing_ok=True)
                # A later request for the deleted file must download it again.
                self._requested.pop(path.relative_to(self._root).as_posix(), None)
                used -= stat.st_size

    def _cached(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the downloaded files, and delete abandoned downloads on the way."""
        for path in self._root.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if path.is_file() and not path.name.startswith("."):
                    yield path, stat
                elif path.name.startswith(".tmp") and time.time() - stat.st_mtime > _ABANDONED:
                    path.unlink()

    def _download(self, shard: Shard, path: Path) -> None:
        """Download a shard to `path`, again if the connection breaks."""
        name, pause = f"{self._repo}: {shard.file}", 1.0
        for tries_left in reversed(range(_TRIES)):
            try:
                with _sentences(name), codec.replacing(path) as draft:
                    # The file gets its name only if it is whole.
                    problem = self._stream(shard, draft)
                    if problem is None:
                        return
                    raise ConnectionError(f"{name} arrived {problem}")
            except ConnectionError:
                if tries_left == 0:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _stream(self, shard: Shard, draft: Path) -> str | None:
        """Write the file's bytes to `draft`; describe how they differ from the listing, or None."""
        url = hub.hf_hub_url(self._repo, shard.file, repo_type="dataset", revision=self._commit)
        digest, size = hashlib.sha256(), 0
        # An error within the body is left to the caller: the client cannot restart the body.
        with (
            http_stream_backoff(
                "GET", url, headers=build_hf_headers(), retry_on_exceptions=(), **_PATIENT
            ) as response,
            draft.open("wb") as file,
        ):
            hf_raise_for_status(response)
            for block in response.iter_bytes(_BLOCK):
                file.write(block)
                digest.update(block)
                size += len(block)
        if size != shard.size:
            return f"with {size:,} bytes, not {shard.size:,}"
        return (
            None
            if digest.hexdigest() == shard.sha256
            else "with another sha256 than was listed"
        )


@contextlib.contextmanager
def _sentences(name: str) -> Iterator[None]:
    """Turn errors of the hub into one sentence about `name`.

    Raises:
        UserError: an error that waiting does not mend.
        ConnectionError: any other.
    """
    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in _BUSY:
            raise ConnectionError(
                f"{name} cannot be had from the hub (HTTP {status})"
            ) from None
        remedy = _REMEDIES.get(status, "")
        raise UserError(f"the hub refuses {name} (HTTP {status}){remedy}") from None
    except errors.OfflineModeIsEnabled:
        raise UserError(
            f"{name} is on the hub, which HF_HUB_OFFLINE keeps from being asked"
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None
    except errors.HTTPError as error:
        raise ConnectionError(
            f"{name} cannot be had from the hub ({' '.join(str(error).split())})"
        ) from None
