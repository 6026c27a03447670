"""The code that ran: the commit of a checkout, the difference from it, and the user's own
modules."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pico_contract.files import sha256_file

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class CodeState:
    """The checkout that code runs from; all None for an installed package or without git.

    Attributes:
        commit: the commit that is checked out.
        dirty: whether a tracked file differs from it or an untracked Python file is there.
        difference: sha256 of that difference, None if there is none.
    """

    commit: str | None = None
    dirty: bool | None = None
    difference: str | None = None


def code_state(package: str) -> CodeState:
    """Look at the checkout that the imported `package` lies in."""
    root = Path(str(sys.modules[package].__file__)).resolve().parent
    try:
        # An environment may lie within the repository of another project, which does not track the
        # package.
        _git(root, "ls-files", "--error-unmatch", "__init__.py")
        top = Path(_git(root, "rev-parse", "--show-toplevel").decode().strip())
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        difference = _difference(top)
    except (OSError, subprocess.SubprocessError, ValueError):
        return CodeState()
    return CodeState(commit, difference is not None, difference)


def _difference(top: Path) -> str | None:
    """Hash the difference from the commit, untracked Python files included; None if there is
    none."""
    # The user's git configuration must not change the bytes that are hashed.
    changed = _git(
        top, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color"
    )
    listed = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py")
    # File names are bytes and need not be UTF-8.
    names = listed.decode(errors="surrogateescape").split("\0")
    untracked = sorted(filter(None, names))
    if not (changed or untracked):
        return None
    digest = hashlib.sha256(changed)
    for name in untracked:
        digest.update(f"\0{name}\0{sha256_file(top / name)}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _git(directory: Path, *arguments: str) -> bytes:
    # Variables such as GIT_DIR, which a hook sets, would speak of another repository.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    }
    # Otherwise git may refresh its index, and block another git command of the user meanwhile.
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, timeout=10, check=True
    )
    return done.stdout


def code_references(raw: Any) -> list[str]:
    """Find every `module:attribute` in the texts of a configuration or a part of one, in their
    order."""
    found = [text for text in _texts(raw) if _REFERENCE.fullmatch(text)]
    return list(dict.fromkeys(found))


def _texts(raw: Any) -> Iterator[str]:
    if isinstance(raw, str):
        yield raw
    elif isinstance(raw, Mapping):
        for value in raw.values():
            yield from _texts(value)
    elif isinstance(raw, list | tuple):
        for value in raw:
            yield from _texts(value)


def module_digests(references: Iterable[str]) -> dict[str, str]:
    """Hash the sources of the imported modules that `module:attribute` references name: module ->
    sha256.

    Modules of the same folder that they import are there as well. One without a source file is left
    out.
    """
    digests: dict[str, str] = {}
    names = [reference.partition(":")[0] for reference in references]
    waiting = [sys.modules.get(name) for name in names]
    while waiting:
        module = waiting.pop()
        path = _source_of(module)
        if module is None or path is None or module.__name__ in digests:
            continue
        digests[module.__name__] = sha256_file(path)
        waiting += _imported_neighbours(module, path)
    return dict(sorted(digests.items()))


def _imported_neighbours(module: ModuleType, path: Path) -> list[ModuleType]:
    """List the modules that a module imports from the folder of its own source."""
    imported = _imported(module, path)
    return [other for other in imported if _shares_folder(_source_of(other), path)]


def _source_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    path = Path(file) if isinstance(file, str) else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _shares_folder(path: Path | None, other: Path) -> bool:
    return path is not None and path.resolve().is_relative_to(other.resolve().parent)


def _imported(module: ModuleType, path: Path) -> list[ModuleType]:
    """List the loaded modules that the source of a module imports, at its top or inside a
    function."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    is_package = path.name == "__init__.py"
    package = module.__name__ if is_package else module.__name__.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(tree):
        names.update(_names(node, package))
    loaded = sorted(names & sys.modules.keys())
    return [sys.modules[name] for name in loaded]


def _names(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the full names of the modules that an import statement may load."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from _with_parents(alias.name)
    elif isinstance(node, ast.ImportFrom):
        base = _base_of(node, package)
        yield base
        for alias in node.names:
            yield f"{base}.{alias.name}" if base else alias.name


def _with_parents(name: str) -> Iterator[str]:
    """Yield `a`, `a.b` and `a.b.c` for `a.b.c`: an import loads them all."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _base_of(node: ast.ImportFrom, package: str) -> str:
    """Resolve the module of `from ... import`, each dot after the first a package further up."""
    parts = package.split(".") if node.level else []
    if node.level > 1:
        parts = parts[: 1 - node.level]
    if node.module:
        parts.append(node.module)
    return ".".join(parts)
