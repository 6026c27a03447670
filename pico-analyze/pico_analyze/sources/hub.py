"""A series of the revisions of one model on the Hugging Face hub: `hub:NAME@step*`.

Which tensors a revision has is read from the first bytes of its files. A file is downloaded when a tensor of it is
first read, and released (the least recently used first) where the budget of the disk needs its place. Revisions are
pinned to the commits that they name when the series is opened.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pico_contract.codec import TensorFile
from pico_contract.errors import DamagedError, UserError, did_you_mean
from pico_contract.layout import MODEL_CONFIG, MODEL_WEIGHTS

from pico_analyze.sources.folder import INDEX, Stored, read_object, shards
from pico_analyze.sources.series import Series, by_step, step_of

PREFIX = "hub:"
DISK_GIB = 20.0
_TIMEOUT = 30.0  # seconds without an answer
_FIRST_BYTES = 100_000  # most headers are shorter, so that one request serves
_LONGEST_HEADER = 100 * 2**20  # as safetensors itself has it


def open_hub(
    name: str, disk_gib: float = DISK_GIB, cache: Path | None = None, endpoint: str | None = None
) -> HubSeries:
    """The revisions (branches and tags) of a model as a series.

    Args:
        name: `hub:NAME@PATTERN`, a glob over revisions; without `@PATTERN` those with "step" and an integer.
        disk_gib: GiB that downloaded files may take.
        cache: where they are kept, `pico-analyze/` in the hub's own cache by default; a later call finds them there.
        endpoint: of the hub; that of `huggingface_hub` (HF_ENDPOINT) by default.

    Raises:
        UserError: huggingface_hub is not installed, no such model or revision, no access, no answer, two revisions of
            one step.
    """
    repo, _, pattern = name.removeprefix(PREFIX).partition("@")
    if not repo:
        raise UserError(f'"{name}" names no model: write hub:NAME@step*')
    store = Store(repo, disk_gib, cache, endpoint)
    commits = store.revisions()
    chosen = [revision for revision in commits if fnmatch.fnmatchcase(revision, pattern or "*step*")]
    if not pattern:
        chosen = [revision for revision in chosen if step_of(revision) is not None]
    if not chosen:
        raise UserError(f'{repo} has no revision "{pattern or "*step*"}"{did_you_mean(pattern, commits)}')
    steps = by_step(chosen)
    return HubSeries(repo.rpartition("/")[2], {step: Revision(store, r, commits[r]) for step, r in steps.items()})


class HubSeries(Series):
    """Revisions as steps; files of `at_once` of them fit into the budget, beside those of a reference."""

    def __init__(self, name: str, revisions: Mapping[int, Revision]) -> None:
        super().__init__(name, revisions)
        self._revisions = revisions

    @property
    def at_once(self) -> int:
        """By the largest revision among those whose headers were read."""
        return max(1, min(model.store.fitting(model.commit) for model in self._revisions.values()) - 1)


@dataclass(frozen=True)
class Revision:
    """The model at one revision, `commit`, of a repository."""

    store: Store
    name: str
    commit: str

    @property
    def place(self) -> str:
        """Where it lies, for messages."""
        return f"{PREFIX}{self.store.repo}@{self.name}"

    def config(self) -> Mapping[str, Any]:
        """config.json; {} where there is none."""
        path = self.store.small_file(self.commit, MODEL_CONFIG)
        return {} if path is None else read_object(path)

    def stored(self) -> list[Stored]:
        """Every tensor, from the headers of its files, which are not downloaded for it."""
        index = self.store.small_file(self.commit, INDEX)
        files = [MODEL_WEIGHTS] if index is None else shards(index)
        return [stored for file in files for stored in self.store.stored(self.commit, file)]

    def fingerprint(self) -> str:
        """The commit, whose files never change."""
        return self.commit

    def read(self, stored: Stored) -> torch.Tensor:
        """One tensor, after downloading the file that holds it where it is not there."""
        return self.store.tensor(self.commit, stored.file, stored.name)


class Store:
    """The files of one repository: asked for, downloaded, and released under a budget. Threads take turns."""

    def __init__(self, repo: str, disk_gib: float, cache: Path | None, endpoint: str | None) -> None:
        self.repo = repo
        self.disk_gib = disk_gib
        self._endpoint = endpoint
        self._cache = cache
        self._budget = int(disk_gib * 2**30)
        self._sizes: dict[tuple[str, str], int] = {}  # of the files in safetensors, by commit and name
        self._lock = threading.RLock()
        self._hub = _library()
        root = Path(self._hub.constants.HF_HOME) / "pico-analyze" if cache is None else Path(cache)
        self.root = root / repo.replace("/", "--")
        kept = (path for path in self.root.rglob("*") if path.suffix in (".safetensors", ".incomplete"))
        self._used = dict.fromkeys(sorted(kept, key=lambda path: path.stat().st_mtime))  # least recently used first

    def __reduce__(self) -> tuple[type[Store], tuple[Any, ...]]:
        """In another process it counts anew, and has a budget of its own."""
        return Store, (self.repo, self.disk_gib, self._cache, self._endpoint)

    def revisions(self) -> dict[str, str]:
        """Branch or tag -> commit."""
        with self._sentences(self.repo):
            refs = self._hub.HfApi(endpoint=self._endpoint).list_repo_refs(self.repo)
        return {ref.name: ref.target_commit for ref in [*refs.tags, *refs.branches]}

    def small_file(self, commit: str, file: str) -> Path | None:
        """A file that is kept, such as a configuration; None where the revision has none."""
        with self._lock, self._sentences(f"{self.repo}@{commit}/{file}"):
            try:
                return self._download(commit, file)
            except self._hub.errors.RemoteEntryNotFoundError:
                return None

    def stored(self, commit: str, file: str) -> list[Stored]:
        """What a file in safetensors holds, by its header alone."""
        first, self._sizes[commit, file] = self._bytes(commit, file, 0, _FIRST_BYTES)
        length = int.from_bytes(first[:8], "little")
        if not 2 <= length <= _LONGEST_HEADER:
            raise DamagedError(f"{PREFIX}{self.repo}@{commit}/{file} is not a safetensors file")
        if 8 + length > len(first):
            first, _ = self._bytes(commit, file, 0, 8 + length)
        try:
            header = json.loads(first[8 : 8 + length])
            header.pop("__metadata__", None)
            return [Stored(file, name, tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DamagedError(f"{PREFIX}{self.repo}@{commit}/{file} is not a safetensors file") from None

    def tensor(self, commit: str, file: str, name: str) -> torch.Tensor:
        """One tensor of a file that is downloaded where it is not there."""
        with self._lock:
            path = self.root / commit / file
            if not path.is_file():
                self._make_room(self._bytes(commit, file, 0, 8)[1], path)
                with self._sentences(f"{self.repo}@{commit}/{file}"):
                    self._download(commit, file)
            self._used.pop(path, None)
            self._used[path] = None
            return TensorFile(path).get(name)  # closed after: an open file keeps its place on the disk

    def fitting(self, commit: str) -> int:
        """How many revisions as large as this one the budget has room for; as far as its size is known."""
        size = sum(size for (of, _), size in self._sizes.items() if of == commit)
        return self._budget // max(size, 1)

    def _download(self, commit: str, file: str) -> Path:
        options = {"revision": commit, "local_dir": self.root / commit, "endpoint": self._endpoint}
        return Path(self._hub.hf_hub_download(self.repo, file, **options))

    def _make_room(self, size: int, file: Path) -> None:
        """Delete files, the least recently used first, until `size` more bytes fit into the budget."""
        if size > self._budget:
            raise DamagedError(
                f"{file.name} of {self.repo} has {size / 2**30:.3g} GiB, more than the {self.disk_gib:.3g} GiB that "
                "downloads may take: raise disk_gib"
            )
        while self._used and size + sum(path.stat().st_size for path in self._used if path.is_file()) > self._budget:
            oldest = next(iter(self._used))
            oldest.unlink(missing_ok=True)
            del self._used[oldest]

    def _bytes(self, commit: str, file: str, start: int, stop: int) -> tuple[bytes, int]:
        """Some bytes of a file of the hub, and how many it has in all."""
        url = self._hub.hf_hub_url(self.repo, file, revision=commit, endpoint=self._endpoint)
        headers = {**self._hub.utils.build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
        with self._sentences(f"{self.repo}@{commit}/{file}"):
            response = self._hub.utils.http_backoff("GET", url, headers=headers, timeout=_TIMEOUT)
            self._hub.utils.hf_raise_for_status(response)
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return response.content, int(total) if total.isdigit() else len(response.content)

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
            raise DamagedError(f"{what} cannot be had from the hub ({' '.join(str(error).split())})") from None


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UserError("models of the hub need the package huggingface_hub: pip install 'pico-analyze[hub]'") from None
    return huggingface_hub
