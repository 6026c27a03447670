"""The files of one model: their names, headers, tensors, and an identity of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from pico_contract.codec import TensorFile
from pico_contract.digests import session_sha256
from pico_contract.errors import DamagedError

from pico_analyze.sources.formats import is_pointer, pointer_sentence

_OPEN_FILES = 64  # an open file is one memory map and one descriptor
_POINTER_BYTES = 1024  # a pointer of Git LFS is shorter


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor of a model, as described in the header of its file."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it


class Files(Protocol):
    """The files of a model, wherever they lie."""

    @property
    def place(self) -> str:
        """The folder or address of the files, for messages."""

    def names(self) -> Collection[str]:
        """List the names of the files, without those in subfolders."""

    def read_json(self, name: str) -> dict[str, Any]:
        """Read the JSON object in a small file; DamagedError if it contains none."""

    def header(self, name: str) -> Sequence[TensorInfo]:
        """List the tensors of a file in safetensors; DamagedError if it is not one."""

    def read(self, stored: TensorInfo) -> torch.Tensor:
        """Read one tensor in its stored dtype, to the CPU."""

    def content_id(self, names: Sequence[str]) -> str:
        """Return a text that is equal for two models if the bytes of these files are equal."""

    def size(self, names: Sequence[str]) -> int:
        """Return the bytes of these files."""


class OpenFiles:
    """The most recently read files, kept open. A copy in another process begins with none."""

    def __init__(self) -> None:
        self.get = lru_cache(_OPEN_FILES)(TensorFile)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        # Open files cannot be sent to another process.
        return OpenFiles, ()


class CheckedReads:
    """A guard of files, so that they are read only while they have the bytes that were hashed.

    Hashing and comparing are both cheap after the first time: a file is hashed again only if the
    file system says that it has changed.
    """

    def __init__(self) -> None:
        self._expected: dict[Path, str] = {}

    def sha256(self, path: Path) -> str:
        """Hash a file, and expect these bytes from now on.

        Raises:
            DamagedError: it cannot be read, or has changed since it was first hashed.
        """
        sha256 = _sha256(path)
        # The first hash stays, since tensors may have been read from those bytes.
        if self._expected.setdefault(path, sha256) != sha256:
            raise DamagedError(f"{path} was altered while it was being measured")
        return sha256

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
        """List the names of the files in the folder, sorted."""
        return sorted(path.name for path in self.path.iterdir() if not path.is_dir())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read the JSON object in a file; DamagedError if it contains none."""
        return read_object(self.path / name)

    def header(self, name: str) -> list[TensorInfo]:
        """List the tensors of a file, from its header alone."""
        path = self.path / name
        # A clone without Git LFS leaves pointers in place of large files.
        is_small = path.is_file() and path.stat().st_size < _POINTER_BYTES
        if is_small and is_pointer(path.read_bytes()):
            raise DamagedError(pointer_sentence(path))
        file = self._open.get(path)
        return [
            TensorInfo(name, tensor, file.shape(tensor), file.dtype(tensor))
            for tensor in file.names
        ]

    def read(self, stored: TensorInfo) -> torch.Tensor:
        """Read one tensor; DamagedError if its file has changed since it was hashed."""
        path = self.path / stored.file
        # Checked on both sides, since the file may be replaced while it is read.
        self._checked.check(path)
        tensor = self._open.get(path).get(stored.name)
        self._checked.check(path)
        return tensor

    def content_id(self, names: Sequence[str]) -> str:
        """Hash the names and bytes of files; from now on tensors are read only from these bytes."""
        return digest([name, self._checked.sha256(self.path / name)] for name in names)

    def size(self, names: Sequence[str]) -> int:
        """Return the bytes of these files."""
        return sum((self.path / name).stat().st_size for name in names)


def digest(items: Iterable[Any]) -> str:
    """Return the sha256 of a list that can be written as JSON."""
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; DamagedError if it contains none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(raw, dict):
        raise DamagedError(f"{path} should hold a JSON object")
    return raw
