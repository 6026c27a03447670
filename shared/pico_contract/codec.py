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
from pico_contract.errors import DamagedError, failed_write, rename_in_errors
from pico_contract.files import sha256_file as sha256_file
from pico_contract.layout import MANIFEST, is_leftover, original_name, replaced, temporary
from pico_contract.schema import DirectoryManifest, FileEntry
from pico_contract.verify import intact_steps as intact_steps
from pico_contract.verify import listed_steps as listed_steps
from pico_contract.verify import read_manifest as read_manifest
from pico_contract.verify import verify_directory as verify_directory


def _no_stage(stage: str, path: Path) -> None:
    """Do nothing between the stages of a write."""


on_stage: Callable[[str, Path], None] = _no_stage
"""Called at each stage of a directory's writing (`temporary_created`, `file_written`,
`before_rename`, `old_set_aside` if an older one exists, `after_rename`) with the final path; crash
tests replace it to end the process there."""


def utc_now() -> str:
    """Write the current time: UTC, ISO 8601 to the second."""
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
        with interrupts.unfinished(), rename_in_errors(draft, path):
            yield draft
            _sync_file(draft)
            draft.replace(path)
    except BaseException:  # a signal too must leave no draft
        draft.unlink(missing_ok=True)
        raise
    # The rename itself is durable only now.
    sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically; errors as `replacing`."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def publish(final: Path, *, replace: bool = True) -> Iterator[Path]:
    """Write a directory so that it appears under `final` whole or not at all.

    The body gets a temporary directory beside `final`, fills it and calls `seal` on it last; then
    it is renamed. An older `final` is replaced; without `replace` it is an OSError, also if it
    appeared meanwhile. If the body raises, the temporary directory is removed and `final` is
    untouched. If the process is killed in the moment in which neither directory has the name,
    `remove_leftovers` gives it back to the older one.
    """
    tag = uuid.uuid4().hex[:8]
    draft = temporary(final, tag)
    directories.make_directory(final.parent)
    try:
        with interrupts.unfinished(), rename_in_errors(draft, final):
            draft.mkdir()
            on_stage("temporary_created", final)
            yield draft
            # A directory without a manifest would not exist for any reader.
            if not any(draft.glob("*.json")):
                raise RuntimeError(f"{final} was not sealed")
            on_stage("before_rename", final)
            old = _rename(draft, final, replaced(final, tag) if replace else None)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_directory(final.parent)
    on_stage("after_rename", final)
    # Only after the new directory is durable: a crash before leaves the older one to be given its
    # name back.
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _rename(draft: Path, final: Path, aside: Path | None) -> Path | None:
    """Rename `draft` to `final`; an older `final` is renamed to `aside`, which is then returned, or
    refused."""
    if aside is None or not final.exists():
        # The system refuses this if a directory with content appeared meanwhile.
        draft.rename(final)
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
    for path in sorted(directory.iterdir()):
        if not path.is_file() or path.name == name or path.name in sealed:
            continue
        _sync_file(path)
        size = path.stat().st_size
        sealed[path.name] = FileEntry(size, sha256_file(path))
    # Sorted, so that the manifest does not depend on which files were sealed before.
    manifest.files = dict(sorted(sealed.items()))
    # A manifest that is sealed anew keeps the time of its creation.
    manifest.created = manifest.created or utc_now()
    write_text(directory / name, manifest.to_json())


def remove_leftovers(parent: Path) -> None:
    """Delete what interrupted writes left below `parent`; only the holder of the run's lock may
    call this.

    A directory that was set aside gets its name back instead if no replacement has taken it.
    """
    if not parent.is_dir():
        return
    for path in list(parent.iterdir()):
        original = original_name(path)
        if original is not None and not original.exists():
            path.rename(original)
        elif is_leftover(path):
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file (metadata `format: pt`, which Hugging Face loaders ask for). Not
    atomic by itself.

    Raises:
        OSError: the disk is full or fails.
    """
    ready = {}
    for name, tensor in tensors.items():
        # safetensors refuses tensors that are not contiguous.
        ready[name] = tensor.detach().to("cpu").contiguous()
    header = {"format": "pt"} | dict(metadata or {})
    try:
        save_file(ready, path, metadata=header)
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
        """Name the stored dtype as safetensors does, such as F32 or BF16."""
        return str(self._entry(name)["dtype"])

    def get(self, name: str) -> torch.Tensor:
        """Read the tensor called `name`, in its stored dtype, on CPU, not sharing memory with the
        file."""
        self._entry(name)
        try:
            # Opened for each tensor (0.06 ms): mapped pages count as this process's memory until
            # the file is closed.
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
    """Read every tensor of a safetensors file; errors as `TensorFile`."""
    file = TensorFile(path)
    return {name: file.get(name) for name in file.names}


def _checked_header(path: Path) -> dict[str, dict[str, Any]]:
    """Read the header of a safetensors file, and compare the end that it states with the file's
    size."""
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            actual = os.fstat(handle.fileno()).st_size
            # The library's own message about a cut file misleads, so the sizes are compared here.
            if not 2 <= length <= actual - 8:
                raise DamagedError(
                    f"{path} is not a safetensors file, or its header was cut ({actual} bytes in all)"
                )
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        expected = 8 + length + max(ends, default=0)
    except FileNotFoundError:
        raise DamagedError(f"{path} does not exist") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(
            f"{path} is not a safetensors file: its header does not parse"
        ) from None
    if actual != expected:
        raise DamagedError(f"{path} has {actual} bytes where its header says {expected}")
    return header
