"""Bytes on disk: directories that appear whole or not at all, their verification, and tensors read
one by one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pico_contract import directories, interrupts
from pico_contract.errors import DamagedError, failed_write, naming
from pico_contract.files import sha256_file as sha256_file
from pico_contract.layout import MANIFEST, is_leftover, name_before, replaced, temporary
from pico_contract.schema import DirectoryManifest, FileEntry
from pico_contract.verify import damage as damage
from pico_contract.verify import intact_steps as intact_steps
from pico_contract.verify import listed_steps as listed_steps
from pico_contract.verify import read_manifest as read_manifest


def _no_stage(stage: str, path: Path) -> None:
    """Nothing happens between the stages of a write."""


on_stage: Callable[[str, Path], None] = _no_stage
"""Called at each stage of a directory's writing (`temporary_created`, `file_written`,
`before_rename`, where there is an older one `old_set_aside`, `after_rename`) with the final path;
crash tests replace it to end the process there."""


def utc_now() -> str:
    """The current time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sync_directory(path: Path) -> None:
    """Flush a directory's entries; a rename is durable only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: the body writes the draft that it is given; readers see the old
    file or the new.

    Raises:
        OSError: the disk is full or fails; it names `path`, which is untouched, and no draft is
            left.
    """
    directories.make_directory(path.parent)
    draft = temporary(path, uuid.uuid4().hex[:8])
    try:
        with interrupts.unfinished(), naming(draft, path):
            yield draft
            _sync_file(draft)
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically; errors as `replacing`."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def publish(final: Path, *, replace: bool = True) -> Iterator[Path]:
    """Write a directory so that it appears under `final` whole or not at all.

    The body gets a temporary directory beside `final`, fills it and calls `seal` on it last; then
    it is renamed. An older `final` is replaced, or without `replace` an OSError, also where it
    appeared meanwhile. When the body raises, the temporary directory is removed and `final` is
    untouched. When the process is killed in the moment in which neither has the name,
    `remove_leftovers` gives it back to the old.
    """
    tag = uuid.uuid4().hex[:8]
    draft = temporary(final, tag)
    directories.make_directory(final.parent)
    try:
        with interrupts.unfinished(), naming(draft, final):
            draft.mkdir()
            on_stage("temporary_created", final)
            yield draft
            if not any(draft.glob("*.json")):
                raise RuntimeError(f"{final} was not sealed")
            on_stage("before_rename", final)
            old = _rename(draft, final, replaced(final, tag) if replace else None)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_directory(final.parent)
    on_stage("after_rename", final)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _rename(draft: Path, final: Path, aside: Path | None) -> Path | None:
    """Rename `draft` to `final`; an older `final` is renamed to `aside`, which is then returned, or
    refused."""
    if aside is None or not final.exists():
        draft.rename(final)  # which the system refuses where there is more than an empty directory
        return None
    try:
        final.rename(aside)
        on_stage("old_set_aside", final)
        draft.rename(final)
    except BaseException:
        if not final.exists():
            aside.rename(final)
        raise
    return aside


def seal(
    directory: Path,
    manifest: DirectoryManifest,
    name: str = MANIFEST,
    known: Mapping[str, FileEntry] | None = None,
) -> None:
    """Flush every file of `directory`, then write its manifest (sizes, sha256) as the last one.

    Files below a subdirectory are not listed: such a subdirectory (a checkpoint's `state/`) has its
    own manifest. Those that are `known` were sealed before: they are neither flushed nor read.
    """
    sealed = dict(known or {})
    for path in sorted(
        path for path in directory.iterdir() if path.is_file() and path.name not in (name, *sealed)
    ):
        _sync_file(path)
        sealed[path.name] = FileEntry(path.stat().st_size, sha256_file(path))
    manifest.files = dict(sorted(sealed.items()))
    manifest.created = manifest.created or utc_now()
    write_text(directory / name, manifest.to_json())


def remove_leftovers(parent: Path) -> None:
    """Delete what interrupted writes left below `parent`; only the holder of the run's lock may
    call this.

    What was set aside, and whose name no replacement has taken, gets its name back instead.
    """
    for path in list(parent.iterdir()) if parent.is_dir() else ():
        before = name_before(path)
        if before is not None and not before.exists():
            path.rename(before)
        elif is_leftover(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file (metadata `format: pt`, which Hugging Face loaders ask for). Not
    atomic by itself.

    Raises:
        OSError: the disk is full or fails.
    """
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        save_file(ready, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise failed_write(error, path) from error
    # The library makes files that nobody else may read; let them be as readable as the directory.
    path.chmod(path.parent.stat().st_mode & 0o666)
    on_stage("file_written", path)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace a safetensors file atomically; errors as `replacing`."""
    with replacing(path) as draft:
        save_tensors(draft, tensors)


class TensorFile:
    """A safetensors file of which single tensors are read on demand, without loading the rest.

    Raises (on construction): DamagedError: missing, not safetensors, or shorter or longer than its
        header says, with both byte counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _checked_header(path)

    @property
    def names(self) -> list[str]:
        """Names of the stored tensors, in the order of the header."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name)["shape"])

    def dtype(self, name: str) -> str:
        """As safetensors writes it, such as F32 or BF16."""
        return str(self._entry(name)["dtype"])

    def get(self, name: str) -> torch.Tensor:
        """The tensor called `name`, in its stored dtype, on CPU, not sharing memory with the
        file."""
        self._entry(name)
        try:
            # Opened anew, 0.06 ms: pages of a file that stays mapped count as this process's memory
            # until it is closed.
            with safe_open(self.path, framework="pt", device="cpu") as file:
                return file.get_tensor(name).clone()
        except (SafetensorError, OSError) as error:
            raise DamagedError(
                f'{self.path}: the tensor "{name}" cannot be read ({error})'
            ) from None

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._entries:
            raise DamagedError(f'{self.path} has no tensor "{name}"')
        return self._entries[name]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file; errors as `TensorFile`."""
    file = TensorFile(path)
    return {name: file.get(name) for name in file.names}


def _checked_header(path: Path) -> dict[str, dict[str, Any]]:
    """Header of a safetensors file, its end compared with the file's size (the library's own
    message misleads)."""
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            actual = os.fstat(handle.fileno()).st_size
            if not 2 <= length <= actual - 8:
                raise DamagedError(
                    f"{path} is not a safetensors file, or its header was cut ({actual} bytes in all)"
                )
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        expected = (
            8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        )
    except FileNotFoundError:
        raise DamagedError(f"{path} does not exist") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{path} is not a safetensors file: its header does not parse") from None
    if actual != expected:
        raise DamagedError(f"{path} has {actual} bytes where its header says {expected}")
    return header
