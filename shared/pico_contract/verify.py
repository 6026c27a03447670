"""Manifests read, and whether the directory of one is what it says: which steps exist, and which
are intact."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pico_contract.errors import DamagedError
from pico_contract.files import irregular, read_regular_text, sha256_file
from pico_contract.layout import MANIFEST, parse_step, step_name
from pico_contract.schema import DirectoryManifest, FileEntry, Manifest, has_own_digest

M = TypeVar("M", bound=Manifest)

ALTERED = "does not have the sha256 that its manifest says: its bytes were altered"
EDITED = "does not have the digest that it states itself: it was edited or damaged"


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


def damage(
    directory: Path, kind: type[DirectoryManifest], *, hashes: bool = False, name: str = MANIFEST
) -> str | None:
    """Return None if `directory` is intact, else one sentence naming the file that is not and how.

    Without `hashes` the manifest must parse and the sizes match (enough to list); with it every
    sha256 is compared, the manifest's own as well (needed to resume, audit or verify).
    """
    if parse_step(directory.name) is not None and directory.is_symlink():
        return f"{directory} is a link: the directory of a step has to lie in the run itself"
    try:
        manifest = read_manifest(directory / name, kind, digest=hashes)
    except DamagedError as error:
        return str(error)
    step = getattr(manifest, "step", None)
    if parse_step(directory.name) not in (None, step):
        return f"{directory / name} is of step {step}: the directory was renamed or copied from another"
    for file, entry in manifest.files.items():
        problem = file_damage(directory / file, entry, hashes=hashes)
        if problem is not None:
            return f"{directory / file} {problem}"
    return None


def file_damage(path: Path, entry: FileEntry, *, hashes: bool) -> str | None:
    """Say how a file differs from its entry in a manifest (`is missing`, `has 3 bytes ...`); None
    if it does not."""
    problem = irregular(path)
    if problem is not None:
        return problem
    size = path.lstat().st_size
    if size != entry.size:
        return f"has {size} bytes where its manifest says {entry.size}"
    return ALTERED if hashes and sha256_file(path) != entry.sha256 else None


def intact_steps(parent: Path, kind: type[DirectoryManifest], *, hashes: bool = False) -> list[int]:
    """Steps below `parent` (a run's checkpoints or snapshots) whose directories are intact,
    ascending."""
    return [
        step
        for step in listed_steps(parent)
        if damage(parent / step_name(step), kind, hashes=hashes) is None
    ]


def listed_steps(parent: Path) -> list[int]:
    """Steps that have a directory below `parent`, intact or not, ascending; [] when `parent` does
    not exist."""
    if not parent.is_dir():
        return []
    steps = (parse_step(path.name) for path in parent.iterdir() if path.is_dir())
    return sorted(step for step in steps if step is not None)
