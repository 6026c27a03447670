"""Files of a data set on the hub: listed, their Parquet footers read, downloaded into a bounded
cache.

What passes (a busy or failing server, a dropped connection) is tried again with growing pauses, by
the hub's own client as far as it goes. What does not (no access, no such file) ends in one
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
_LONGEST_PAUSE = 60.0  # seconds; eight tries last about four minutes
_TIMEOUT = 60.0  # seconds without an answer
_BLOCK = 1 << 20
_FOOTER = 1 << 16  # most footers are shorter, so that one request serves
_BUSY = (408, 429, 500, 502, 503, 504)
_PATIENT: dict[str, Any] = {
    "max_retries": _TRIES,
    "max_wait_time": _LONGEST_PAUSE,
    "timeout": _TIMEOUT,
}
_ABANDONED = 24 * 3600  # seconds after which a half-written file is nobody's


class HubRepo:
    """A data set at one commit."""

    def __init__(self, repo: str, revision: str | None) -> None:
        """Ask which commit `revision` (a branch, tag or commit; None is the default branch) names.

        Raises:
            UserError: no such data set or revision, or no access; ConnectionError: no answer.
        """
        self.repo = repo
        with _sentences(f"the data set {repo}"):
            self.commit = str(
                hub.HfApi().dataset_info(repo, revision=revision, timeout=_TIMEOUT).sha
            )

    def shards(self, pattern: str) -> list[tuple[str, int, str]]:
        """(file, bytes, sha256) of the files that the glob `pattern` matches, by name."""
        with _sentences(f"the data set {self.repo}"):
            tree = hub.HfApi().list_repo_tree(
                self.repo, recursive=True, revision=self.commit, repo_type="dataset"
            )
            files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        chosen = sorted(fnmatch.filter(files, pattern))
        if not chosen:
            raise UserError(f'{self.repo} has no file "{pattern}"{did_you_mean(pattern, files)}')
        hashes = {file: lfs.sha256 for file in chosen if (lfs := files[file].lfs) is not None}
        if unhashed := [file for file in chosen if file not in hashes]:
            raise UserError(
                f"{self.repo} lists no sha256 of {unhashed[0]}: download it, and fetch from that directory"
            )
        return [(file, files[file].size, hashes[file]) for file in chosen]

    def footer(self, file: str, size: int) -> Any:
        """The Parquet metadata of a file, of which only the end is read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        end = self._bytes(file, max(size - _FOOTER, 0), size)
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
    """Shards of one commit, downloaded when they are announced or asked for.

    Processes of one machine may share the cache: a lock on each file lets one of them download it.
    No state is kept but the files: their times of change say when they were last used.
    """

    def __init__(self, repo: str, commit: str, cache: Path, cache_gib: float, largest: int) -> None:
        self._repo, self._commit = repo, commit
        self._root = cache / repo.replace("/", "--") / commit
        self._budget = int(cache_gib * 2**30)
        if 3 * largest > self._budget:
            raise UserError(
                f"data.stream.cache_gib is {cache_gib:g}, too little for three shards (of {largest / 2**30:.3g} GiB) of"
                f" {repo}: one being read, one downloaded, one that a batch began in"
            )
        self._lock = threading.Lock()
        self._asked: dict[str, Future[Path]] = {}
        self._coming: dict[str, int] = {}  # bytes of the files that are being downloaded

    def path(self, shard: Shard) -> Path:
        """The shard in the cache, intact."""
        while True:
            path = self._ask(shard).result()
            with contextlib.suppress(
                FileNotFoundError
            ):  # released since, here or by another process
                os.utime(
                    path, ns=(time.time_ns(),) * 2
                )  # the kernel's own clock here is one of milliseconds
                return path
            self._asked.pop(shard.file, None)

    def prefetch(self, shard: Shard) -> None:
        """Begin to download it."""
        self._ask(shard)

    def path_of(self, shard: Shard) -> Path:
        """Its path in the cache."""
        return self._root / shard.file

    def _ask(self, shard: Shard) -> Future[Path]:
        with self._lock:
            asked = self._asked.get(shard.file)
            if asked is None or (asked.done() and asked.exception() is not None):
                asked = self._asked[shard.file] = Future()
                # Of the kind that the end of the process does not wait for.
                threading.Thread(target=self._fulfil, args=(asked, shard), daemon=True).start()
            return asked

    def _fulfil(self, asked: Future[Path], shard: Shard) -> None:
        try:
            asked.set_result(self._have(shard))
        except BaseException as error:
            asked.set_exception(error)

    def _have(self, shard: Shard) -> Path:
        path = self._root / shard.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file() or alteration(path, shard) is not None:
                path.unlink(missing_ok=True)
                self._reserve(shard)
                try:
                    self._download(shard, path)
                finally:
                    with self._lock:
                        del self._coming[shard.file]
        return path

    def _reserve(self, shard: Shard) -> None:
        """Delete files, the least recently used first, until this one has its place within the
        budget."""
        with self._lock:
            self._coming[shard.file] = shard.size
            kept = sorted(self._kept(), key=lambda entry: entry[1].st_mtime_ns)
            used = sum(stat.st_size for _, stat in kept) + sum(self._coming.values())
            for path, stat in kept:
                if used <= self._budget:
                    return
                path.unlink(missing_ok=True)
                self._asked.pop(path.relative_to(self._root).as_posix(), None)
                used -= stat.st_size

    def _kept(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The downloaded files; what was half written and given up is deleted on the way."""
        for path in self._root.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if path.is_file() and not path.name.startswith("."):
                    yield path, stat
                elif path.name.startswith(".tmp") and time.time() - stat.st_mtime > _ABANDONED:
                    path.unlink()

    def _download(self, shard: Shard, path: Path) -> None:
        what, pause = f"{self._repo}: {shard.file}", 1.0
        for tries_left in reversed(range(_TRIES)):
            try:
                with _sentences(what), codec.replacing(path) as draft:
                    problem = self._stream(shard, draft)
                    if problem is None:
                        return
                    raise ConnectionError(f"{what} arrived {problem}")
            except ConnectionError:
                if tries_left == 0:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _stream(self, shard: Shard, draft: Path) -> str | None:
        """Write the file's bytes to `draft`; in which way they are not those listed, or None."""
        url = hub.hf_hub_url(self._repo, shard.file, repo_type="dataset", revision=self._commit)
        digest, size = hashlib.sha256(), 0
        # An error in the middle of the body is for the caller: the client could not begin the body
        # anew.
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
        return None if digest.hexdigest() == shard.sha256 else "with another sha256 than was listed"


@contextlib.contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Errors of the hub in one sentence: UserError for what no patience mends, ConnectionError for
    the rest."""
    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in _BUSY:
            raise ConnectionError(f"{what} cannot be had from the hub (HTTP {status})") from None
        remedy = {
            401: ": log in with `hf auth login`",
            403: ": ask for access on the hub",
            404: ": it is not there",
        }
        raise UserError(f"the hub refuses {what} (HTTP {status}){remedy.get(status, '')}") from None
    except errors.OfflineModeIsEnabled:
        raise UserError(
            f"{what} is on the hub, which HF_HUB_OFFLINE keeps from being asked"
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from None
    except errors.HTTPError as error:
        raise ConnectionError(
            f"{what} cannot be had from the hub ({' '.join(str(error).split())})"
        ) from None
