"""The files of one repository on the Hugging Face hub, downloaded within a budget of disk space.

A file is downloaded when it is first read. When the budget is exhausted, the least recently used
files are deleted. Each file is compared once a session with the hash that the hub lists.
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
_TIMEOUT = 30.0  # seconds
_FIRST_BYTES = 100_000  # most headers are shorter, so that one request is enough
_LONGEST_HEADER = 100 * 2**20  # the limit of safetensors itself
_BUDGETED = (".safetensors", ".pt", ".incomplete")


@dataclass(frozen=True)
class Entry:
    """A file as the hub lists it.

    Attributes:
        size: in bytes.
        blob: git's hash of the file, or of the pointer to a large file.
        sha256: the hash of a large file; None for others.
    """

    size: int
    blob: str
    sha256: str | None

    @property
    def identity(self) -> str:
        """A text that is equal for two files if their bytes are equal."""
        return self.sha256 or self.blob


@dataclass(frozen=True)
class Commit:
    """A commit of a branch."""

    id: str
    title: str


class Store:
    """The files of one repository. It may be used from several threads, which take turns."""

    def __init__(
        self, repo: str, disk_gib: float, cache: Path | None, endpoint: str | None
    ) -> None:
        self.repo = repo
        self.disk_gib = disk_gib
        self._endpoint = endpoint
        self._cache = cache
        self._budget = int(disk_gib * 2**30)
        self._trees: dict[str, dict[str, Entry]] = {}  # commit -> path -> file
        self._intact: dict[Path, str] = {}  # path -> sha256 of content with the listed git hash
        # Reentrant, since `read` calls `tree`
        self._lock = threading.RLock()
        self._hub = _library()
        root = (
            Path(self._hub.constants.HF_HOME) / "pico-analyze" if cache is None else Path(cache)
        )
        self.root = root / repo.replace("/", "--")
        files = [path for path in self.root.rglob("*") if path.suffix in _BUDGETED]
        files.sort(key=lambda path: path.stat().st_mtime)
        self._used = dict.fromkeys(files)  # an ordered set, the least recently used first

    def __reduce__(self) -> tuple[type[Store], tuple[Any, ...]]:
        """Copy it to another process with an empty state and a separate budget."""
        # Locks and open sessions cannot be sent to another process.
        return Store, (self.repo, self.disk_gib, self._cache, self._endpoint)

    def revisions(self) -> dict[str, str]:
        """Return branch or tag -> commit."""
        with self._sentences(self.repo):
            refs = self._api.list_repo_refs(self.repo)
        return {ref.name: ref.target_commit for ref in [*refs.tags, *refs.branches]}

    def commits(self, revision: str) -> list[Commit]:
        """List the commits of a branch, the newest first."""
        with self._sentences(f"{self.repo}@{revision}"):
            commits = self._api.list_repo_commits(self.repo, revision=revision)
        return [Commit(commit.commit_id, commit.title) for commit in commits]

    def tree(self, commit: str) -> dict[str, Entry]:
        """Return path -> file for all files of a commit; nothing is downloaded."""
        with self._lock:
            if commit not in self._trees:
                self._trees[commit] = self._list(commit)
            return self._trees[commit]

    def _list(self, commit: str) -> dict[str, Entry]:
        with self._sentences(f"{self.repo}@{commit}"):
            # The pages are requested while the listing is iterated: errors must occur inside of
            # `with`.
            listed = list(self._api.list_repo_tree(self.repo, recursive=True, revision=commit))
        tree = {}
        for item in listed:
            if hasattr(item, "blob_id"):  # a file, not a folder
                sha256 = item.lfs.sha256 if item.lfs else None
                tree[item.path] = Entry(item.size, item.blob_id, sha256)
        return tree

    def small_file(self, commit: str, file: str) -> Path:
        """Download a file that is never deleted, such as a configuration."""
        with self._lock, self._sentences(f"{self.repo}@{commit}/{file}"):
            return self._download(commit, file)

    def header(self, commit: str, file: str) -> list[TensorInfo]:
        """List the tensors of a file in safetensors, from its header alone."""
        first = self._first_bytes(commit, file, _FIRST_BYTES)
        place = f"{PREFIX}{self.repo}@{commit}/{file}"
        if is_pointer(first):
            raise DamagedError(pointer_sentence(place))
        length = int.from_bytes(first[:8], "little")
        # The shortest header is `{}`; a huge one would be read into memory whole.
        if not 2 <= length <= _LONGEST_HEADER:
            raise DamagedError(f"{place} is not a safetensors file")
        # A long header needs a second request.
        if 8 + length > len(first):
            first = self._first_bytes(commit, file, 8 + length)
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
        """Apply `reader` to a file, after downloading it unless an intact copy is on disk.

        `reader` must not keep the file open: an open file takes disk space after it is deleted.
        """
        with self._lock:
            path = self.root / commit / file
            if not (path.is_file() and self._is_intact(path, commit, file)):
                # The library may take an existing copy for the file, however damaged.
                path.unlink(missing_ok=True)
                self._free_disk_space(self.tree(commit)[file].size, path)
                with self._sentences(f"{self.repo}@{commit}/{file}"):
                    self._download(commit, file)
                if not self._is_intact(path, commit, file):
                    raise DamagedError(
                        f"{path} does not have the hash that the hub lists: its bytes were altered"
                    )
            self._used.pop(path, None)
            self._used[path] = None  # now the most recently used
            return reader(path)

    def fitting(self, size: int) -> int:
        """Return how many times `size` bytes fit into the budget."""
        return self._budget // max(size, 1)

    @property
    def _api(self) -> Any:
        return self._hub.HfApi(endpoint=self._endpoint)

    def _is_intact(self, path: Path, commit: str, file: str) -> bool:
        """Return whether a file on disk has the listed hash; unchanged files are read once."""
        listed, sha256 = self.tree(commit)[file], session_sha256(path)
        if listed.sha256 is not None:
            return sha256 == listed.sha256
        # The hub lists only git's hash of a small file; remember the sha256 that goes with it.
        if self._intact.get(path) != sha256 and _git_blob(path) == listed.blob:
            self._intact[path] = sha256
        return self._intact.get(path) == sha256

    def _download(self, commit: str, file: str) -> Path:
        options = {
            "revision": commit,
            "local_dir": self.root / commit,
            "endpoint": self._endpoint,
        }
        return Path(self._hub.hf_hub_download(self.repo, file, **options))

    def _free_disk_space(self, size: int, file: Path) -> None:
        """Delete the least recently used files until `size` more bytes fit into the budget."""
        # For such a file it would not help to delete all others.
        if size > self._budget:
            raise DamagedError(
                f"{file.name} of {self.repo} has {size / 2**30:.3g} GiB, more than the {self.disk_gib:.3g} GiB that "
                "downloads may take: raise disk_gib"
            )
        while self._used and size + self._used_bytes() > self._budget:
            oldest = next(iter(self._used))
            oldest.unlink(missing_ok=True)
            del self._used[oldest]

    def _used_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._used if path.is_file())

    def _first_bytes(self, commit: str, file: str, count: int) -> bytes:
        utils = self._hub.utils
        url = self._hub.hf_hub_url(self.repo, file, revision=commit, endpoint=self._endpoint)
        headers = utils.build_hf_headers()
        headers["Range"] = f"bytes=0-{count - 1}"
        with self._sentences(f"{self.repo}@{commit}/{file}"):
            response = utils.http_backoff("GET", url, headers=headers, timeout=_TIMEOUT)
            utils.hf_raise_for_status(response)
        content: bytes = response.content
        return content

    @contextlib.contextmanager
    def _sentences(self, what: str) -> Iterator[None]:
        """Raise errors of the hub and of the network as a DamagedError of one sentence."""
        errors = self._hub.errors
        try:
            yield
        except errors.GatedRepoError:
            raise DamagedError(
                f"{what} is gated: ask for access on the hub, then log in with `hf auth login`"
            ) from None
        except errors.RepositoryNotFoundError:
            raise DamagedError(
                f"there is no model {what} on the hub, or it is private"
            ) from None
        except (errors.HTTPError, errors.HFValidationError, OSError) as error:
            raise DamagedError(
                f"{what} cannot be had from the hub ({' '.join(str(error).split())})"
            ) from None


def _git_blob(path: Path) -> str:
    """Compute git's hash of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _library() -> Any:
    # Submodules are imported by name, since the package loads them lazily.
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
