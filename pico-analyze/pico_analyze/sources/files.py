"""The files of one model: what lies there, their headers, single tensors of them, and what
identifies their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from pico_contract.codec import TensorFile
from pico_contract.digests import session_sha256
from pico_contract.errors import DamagedError

from pico_analyze.sources.formats import is_pointer, pointer_sentence

_OPEN_FILES = 64
_POINTER_BYTES = 1024  # a pointer of Git LFS is shorter


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a model: the file that holds it, its name there, its shape and dtype as
    safetensors writes them."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: str


class Files(Protocol):
    """The files of a model, wherever they lie."""

    @property
    def place(self) -> str:
        """Where they lie, for messages."""

    def names(self) -> Collection[str]:
        """Names of the files beside one another, without those in folders."""

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in a small file; DamagedError if it holds none."""

    def header(self, name: str) -> Sequence[TensorInfo]:
        """What a file in safetensors holds; DamagedError if it is not one."""

    def read(self, stored: TensorInfo) -> torch.Tensor:
        """One tensor in its stored dtype, on CPU."""

    def content_id(self, names: Sequence[str]) -> str:
        """A text that is equal for two models if the bytes of these files are."""

    def size(self, names: Sequence[str]) -> int:
        """Bytes of these files."""


class OpenFiles:
    """The files that were read last, kept open. A copy in another process begins with none."""

    def __init__(self) -> None:
        self.get = lru_cache(_OPEN_FILES)(TensorFile)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()


class CheckedReads:
    """Files that are read only while their bytes are those that were hashed.

    Hashing and comparing are both cheap after the first time: a file is hashed again only if the
    file system says that it has changed.
    """

    def __init__(self) -> None:
        self._expected: dict[Path, str] = {}

    def sha256(self, path: Path) -> str:
        """Hash a file and expect these bytes from now on; DamagedError if it cannot be read or has
        changed since."""
        found = _sha256(path)
        if self._expected.setdefault(path, found) != found:
            raise DamagedError(f"{path} was altered while it was being measured")
        return found

    def check(self, path: Path) -> None:
        """Raise DamagedError if a file that was hashed no longer has the same bytes."""
        if path in self._expected:
            self.sha256(path)


def _sha256(path: Path) -> str:
    try:
        return session_sha256(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror or error})") from None


class LocalFiles:
    """The files of a folder on disk."""

    def __init__(self, path: Path, files: OpenFiles) -> None:
        self.path = path
        self.place = str(path)
        self._open = files
        self._checked = CheckedReads()

    def names(self) -> list[str]:
        """Of the files in the folder, in order."""
        return sorted(path.name for path in self.path.iterdir() if not path.is_dir())

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file."""
        return read_object(self.path / name)

    def header(self, name: str) -> list[TensorInfo]:
        """Each tensor of a file, from its header alone."""
        path = self.path / name
        if (
            path.is_file()
            and path.stat().st_size < _POINTER_BYTES
            and is_pointer(path.read_bytes())
        ):
            raise DamagedError(pointer_sentence(path))
        opened = self._open.get(path)
        return [
            TensorInfo(name, tensor, opened.shape(tensor), opened.dtype(tensor))
            for tensor in opened.names
        ]

    def read(self, stored: TensorInfo) -> torch.Tensor:
        """One tensor, from the one file that holds it; DamagedError if the file has changed since
        it was hashed."""
        path = self.path / stored.file
        self._checked.check(path)
        tensor = self._open.get(path).get(stored.name)
        self._checked.check(path)
        return tensor

    def content_id(self, names: Sequence[str]) -> str:
        """Of names and bytes. Tensors are read from these bytes alone from now on."""
        return digest([name, self._checked.sha256(self.path / name)] for name in names)

    def size(self, names: Sequence[str]) -> int:
        """Bytes of these files."""
        return sum((self.path / name).stat().st_size for name in names)


def digest(of: Any) -> str:
    """sha256 of what can be written as JSON."""
    return hashlib.sha256(json.dumps(list(of)).encode()).hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; DamagedError if it holds none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(raw, dict):
        raise DamagedError(f"{path} should hold a JSON object")
    return raw
