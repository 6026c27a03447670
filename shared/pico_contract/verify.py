"""Verification of directories against their manifests: which steps exist, and which are intact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pico_contract.errors import DamagedError
from pico_contract.files import irregularity, read_regular_text, sha256_file
from pico_contract.layout import MANIFEST, parse_step, step_name
from pico_contract.schema import DirectoryManifest, FileEntry, Manifest, has_own_digest

M = TypeVar("M", bound=Manifest)


def altered_since(record: str) -> str:
    """Say of a file that its sha256 is not the one that `record` states."""
    return f"does not have the sha256 that {record} says: its bytes were altered"


ALTERED = altered_since("its manifest")
EDITED = "does not have the digest that it states itself: it was edited or damaged"
EDITED_SINCE_RECORDED = "does not have the sha256 that run.json says: it was edited or damaged"
LINKED_STEP = "is a link: the directory of a step has to lie in the run itself"


def read_manifest(path: Path, kind: type[M], *, digest: bool = False) -> M:
    """Read the manifest at `path`; with `digest` its text must have the digest that it states, if
    it states one.

    Raises:
        DamagedError: it is missing, a link, not JSON, of another format or a newer major version,
            lacks a key, or was edited.
    """
    text = read_regular_text(path)
    manifest = kind.from_json(text, path)
    if digest and manifest.digest and not has_own_digest(text, manifest.digest):
        raise DamagedError(f"{path} {EDITED}")
    return manifest


def verify_directory(
    directory: Path,
    kind: type[DirectoryManifest],
    *,
    hashes: bool = False,
    name: str = MANIFEST,
) -> str | None:
    """Return None if `directory` is intact, else one sentence naming the file that is not and how.

    Without `hashes` the manifest must parse and the sizes match (enough to list); with it every
    sha256 is compared, the manifest's own as well (needed to resume, audit or verify).
    """
    step = parse_step(directory.name)
    # Only the directory of a step: a run or a data directory may lie behind a link.
    if step is not None and directory.is_symlink():
        return f"{directory} {LINKED_STEP}"
    try:
        manifest = read_manifest(directory / name, kind, digest=hashes)
    except DamagedError as error:
        return str(error)
    # A copy under another step's name has right hashes; only its manifest tells.
    stated = getattr(manifest, "step", None)
    if step is not None and step != stated:
        return f"{directory / name} {of_other_step(stated)}"
    path, problem = next(damaged_files(directory, manifest, hashes=hashes), (directory, None))
    return f"{path} {problem}" if problem else None


def of_other_step(stated: int | None) -> str:
    """Say of a manifest that it states another step than its directory's name."""
    return f"is of step {stated}: the directory was renamed or copied from another"


def damaged_files(
    directory: Path, manifest: DirectoryManifest, *, hashes: bool
) -> Iterator[tuple[Path, str]]:
    """Compare the files of a directory with its manifest; (path, how it differs) of each that is
    not intact."""
    for file, entry in manifest.files.items():
        problem = file_damage(directory / file, entry, hashes=hashes)
        if problem is not None:
            yield directory / file, problem


def file_damage(path: Path, entry: FileEntry, *, hashes: bool) -> str | None:
    """Say how a file differs from its entry in a manifest (`is missing`, `has 3 bytes ...`); None
    if it does not."""
    problem = irregularity(path)
    if problem is not None:
        return problem
    # The size first: it is had without reading, and a wrong one says more than a wrong hash.
    size = path.lstat().st_size
    if size != entry.size:
        return f"has {size} bytes where its manifest says {entry.size}"
    return ALTERED if hashes and sha256_file(path) != entry.sha256 else None


def without_path(sentence: str, path: Path) -> str:
    """Cut the path off a sentence that begins with it."""
    return sentence.removeprefix(str(path)).lstrip(" ,:")


def intact_steps(
    parent: Path, kind: type[DirectoryManifest], *, hashes: bool = False
) -> list[int]:
    """List the steps below `parent` (a run's checkpoints or snapshots) whose directories are
    intact, ascending."""
    return [
        step
        for step in listed_steps(parent)
        if verify_directory(parent / step_name(step), kind, hashes=hashes) is None
    ]


def listed_steps(parent: Path) -> list[int]:
    """List the steps that have a directory below `parent`, intact or not, ascending; [] if there is
    no `parent`."""
    if not parent.is_dir():
        return []
    steps = (parse_step(path.name) for path in parent.iterdir() if path.is_dir())
    return sorted(step for step in steps if step is not None)
