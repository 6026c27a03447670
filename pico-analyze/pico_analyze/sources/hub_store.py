"""The files of one repository of the Hugging Face hub: listed, read in part, downloaded, released
under a budget.

A file is downloaded when something of it is first read, and released (the least recently used
first) when the budget of the disk needs its place. What is read is compared with the hash that the
hub lists, once a session and file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pico_contract.digests import session_sha256
from pico_contract.errors import DamagedError, UserError

from pico_analyze.sources.files import TensorInfo
from pico_analyze.sources.formats import is_pointer, pointer_sentence

T = TypeVar("T")
PREFIX = "hub:"
_TIMEOUT = 30.0  # seconds without an answer
_FIRST_BYTES = 100_000  # most headers are shorter, so that one request serves
_LONGEST_HEADER = 100 * 2**20  # as safetensors itself has it
_BUDGETED = (".safetensors", ".pt", ".incomplete")


@dataclass(frozen=True)
class Entry:
    """A file as the hub lists it. `sha256` is known of large files; `blob` is git's own hash, of
    the pointer then."""

    size: int
    blob: str
    sha256: str | None

    @property
    def identity(self) -> str:
        """Equal for two files if their bytes are."""
        return self.sha256 or self.blob


@dataclass(frozen=True)
class Commit:
    """A commit of a branch."""

    id: str
    title: str


class Store:
    """The files of one repository. Threads take turns."""

    def __init__(
        self, repo: str, disk_gib: float, cache: Path | None, endpoint: str | None
    ) -> None:
        self.repo = repo
        self.disk_gib = disk_gib
        self._endpoint = endpoint
        self._cache = cache
        self._budget = int(disk_gib * 2**30)
        self._trees: dict[str, dict[str, Entry]] = {}  # commit -> path -> file
        self._intact: dict[
            Path, str
        ] = {}  # path -> the sha256 under which it was found to be what the hub lists
        self._lock = threading.RLock()
        self._hub = _library()
        root = Path(self._hub.constants.HF_HOME) / "pico-analyze" if cache is None else Path(cache)
        self.root = root / repo.replace("/", "--")
        kept = (path for path in self.root.rglob("*") if path.suffix in _BUDGETED)
        self._used = dict.fromkeys(
            sorted(kept, key=lambda path: path.stat().st_mtime)
        )  # least recently used first

    def __reduce__(self) -> tuple[type[Store], tuple[Any, ...]]:
        """In another process it counts anew, and has a budget of its own."""
        return Store, (self.repo, self.disk_gib, self._cache, self._endpoint)

    def revisions(self) -> dict[str, str]:
        """Branch or tag -> commit."""
        with self._sentences(self.repo):
            refs = self._api.list_repo_refs(self.repo)
        return {ref.name: ref.target_commit for ref in [*refs.tags, *refs.branches]}

    def commits(self, revision: str) -> list[Commit]:
        """The commits of a branch, the newest first."""
        with self._sentences(f"{self.repo}@{revision}"):
            found = self._api.list_repo_commits(self.repo, revision=revision)
        return [Commit(commit.commit_id, commit.title) for commit in found]

    def tree(self, commit: str) -> dict[str, Entry]:
        """Path -> every file of a commit; nothing is downloaded."""
        with self._lock:
            if commit not in self._trees:
                with self._sentences(f"{self.repo}@{commit}"):
                    listed = list(
                        self._api.list_repo_tree(self.repo, recursive=True, revision=commit)
                    )
                files = [one for one in listed if hasattr(one, "blob_id")]
                self._trees[commit] = {
                    one.path: Entry(one.size, one.blob_id, one.lfs.sha256 if one.lfs else None)
                    for one in files
                }
            return self._trees[commit]

    def small_file(self, commit: str, file: str) -> Path:
        """A file that is kept for good, such as a configuration."""
        with self._lock, self._sentences(f"{self.repo}@{commit}/{file}"):
            return self._download(commit, file)

    def header(self, commit: str, file: str) -> list[TensorInfo]:
        """What a file in safetensors holds, by its header alone."""
        first = self._bytes(commit, file, 0, _FIRST_BYTES)
        place = f"{PREFIX}{self.repo}@{commit}/{file}"
        if is_pointer(first):
            raise DamagedError(pointer_sentence(place))
        length = int.from_bytes(first[:8], "little")
        if not 2 <= length <= _LONGEST_HEADER:
            raise DamagedError(f"{place} is not a safetensors file")
        if 8 + length > len(first):
            first = self._bytes(commit, file, 0, 8 + length)
        try:
            header = json.loads(first[8 : 8 + length])
            header.pop("__metadata__", None)
            return [
                TensorInfo(file, name, tuple(entry["shape"]), entry["dtype"])
                for name, entry in header.items()
            ]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DamagedError(f"{place} is not a safetensors file") from None

    def read(self, commit: str, file: str, reader: Callable[[Path], T]) -> T:
        """Apply `reader` to a file, which is downloaded if it is not there or not what the hub
        lists.

        `reader` must not keep the file open, since its place on the disk would then not be
        released.
        """
        with self._lock:
            path = self.root / commit / file
            if not (path.is_file() and self._is_intact(path, commit, file)):
                path.unlink(missing_ok=True)
                self._make_room(self.tree(commit)[file].size, path)
                with self._sentences(f"{self.repo}@{commit}/{file}"):
                    self._download(commit, file)
                if not self._is_intact(path, commit, file):
                    raise DamagedError(
                        f"{path} does not have the hash that the hub lists: its bytes were altered"
                    )
            self._used.pop(path, None)
            self._used[path] = None
            return reader(path)

    def fitting(self, size: int) -> int:
        """How many times `size` bytes the budget has room for."""
        return self._budget // max(size, 1)

    @property
    def _api(self) -> Any:
        return self._hub.HfApi(endpoint=self._endpoint)

    def _is_intact(self, path: Path, commit: str, file: str) -> bool:
        """Whether a file on disk is what the hub lists; it is read once a session."""
        listed, found = self.tree(commit)[file], session_sha256(path)
        if listed.sha256 is not None:
            return found == listed.sha256
        if self._intact.get(path) != found and _git_blob(path) == listed.blob:
            self._intact[path] = found
        return self._intact.get(path) == found

    def _download(self, commit: str, file: str) -> Path:
        options = {"revision": commit, "local_dir": self.root / commit, "endpoint": self._endpoint}
        return Path(self._hub.hf_hub_download(self.repo, file, **options))

    def _make_room(self, size: int, file: Path) -> None:
        """Delete files, the least recently used first, until `size` more bytes fit into the
        budget."""
        if size > self._budget:
            raise DamagedError(
                f"{file.name} of {self.repo} has {size / 2**30:.3g} GiB, more than the {self.disk_gib:.3g} GiB that "
                "downloads may take: raise disk_gib"
            )
        while (
            self._used
            and size + sum(path.stat().st_size for path in self._used if path.is_file())
            > self._budget
        ):
            oldest = next(iter(self._used))
            oldest.unlink(missing_ok=True)
            del self._used[oldest]

    def _bytes(self, commit: str, file: str, start: int, stop: int) -> bytes:
        """Some bytes of a file of the hub."""
        url = self._hub.hf_hub_url(self.repo, file, revision=commit, endpoint=self._endpoint)
        headers = {**self._hub.utils.build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
        with self._sentences(f"{self.repo}@{commit}/{file}"):
            response = self._hub.utils.http_backoff("GET", url, headers=headers, timeout=_TIMEOUT)
            self._hub.utils.hf_raise_for_status(response)
        content: bytes = response.content
        return content

    @contextlib.contextmanager
    def _sentences(self, what: str) -> Iterator[None]:
        """Errors of the hub and of the way to it, in one sentence."""
        errors = self._hub.errors
        try:
            yield
        except errors.GatedRepoError:
            raise DamagedError(
                f"{what} is gated: ask for access on the hub, then log in with `hf auth login`"
            ) from None
        except errors.RepositoryNotFoundError:
            raise DamagedError(f"there is no model {what} on the hub, or it is private") from None
        except (errors.HTTPError, errors.HFValidationError, OSError) as error:
            raise DamagedError(
                f"{what} cannot be had from the hub ({' '.join(str(error).split())})"
            ) from None


def _git_blob(path: Path) -> str:
    """The hash under which git knows a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UserError(
            "models of the hub need the package huggingface_hub: pip install 'pico-analyze[hub]'"
        ) from None
    return huggingface_hub
