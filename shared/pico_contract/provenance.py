"""Which code ran: the commit of a checkout, what differs from it, and the user's own modules."""

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
        difference: sha256 of that difference, None where there is none.
    """

    commit: str | None = None
    dirty: bool | None = None
    difference: str | None = None


def code_state(package: str) -> CodeState:
    """The checkout that the imported `package` lies in."""
    root = Path(str(sys.modules[package].__file__)).resolve().parent
    try:
        _git(
            root, "ls-files", "--error-unmatch", "__init__.py"
        )  # an environment may lie within a repository of others
        top = Path(_git(root, "rev-parse", "--show-toplevel").decode().strip())
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        difference = _difference(top)
    except (OSError, subprocess.SubprocessError, ValueError):
        return CodeState()
    return CodeState(commit, difference is not None, difference)


def _difference(top: Path) -> str | None:
    """sha256 of what differs from the commit, None where nothing does; untracked Python files
    belong to it."""
    changed = _git(top, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color")
    listed = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py").decode(
        errors="surrogateescape"
    )
    untracked = sorted(name for name in listed.split("\0") if name)
    if not (changed or untracked):
        return None
    digest = hashlib.sha256(changed)
    for name in untracked:
        digest.update(f"\0{name}\0{sha256_file(top / name)}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _git(directory: Path, *arguments: str) -> bytes:
    # Variables such as GIT_DIR, which a hook sets, would speak of another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, timeout=10, check=True
    )
    return done.stdout


def code_references(raw: Any) -> list[str]:
    """Every `module:attribute` in the texts of a configuration or a part of one, in their order."""
    return list(dict.fromkeys(text for text in _texts(raw) if _REFERENCE.fullmatch(text)))


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
    """Module -> sha256 of its source file, for the imported modules that `module:attribute`
    references name.

    Modules of the same folder that they import are there as well. One without a source file is left
    out.
    """
    found: dict[str, str] = {}
    waiting = [sys.modules.get(reference.partition(":")[0]) for reference in references]
    while waiting:
        module = waiting.pop()
        path = _source_of(module)
        if module is None or path is None or module.__name__ in found:
            continue
        found[module.__name__] = sha256_file(path)
        waiting += [
            other for other in _imported(module, path) if _shares_folder(_source_of(other), path)
        ]
    return dict(sorted(found.items()))


def _source_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    path = Path(file) if isinstance(file, str) else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _shares_folder(path: Path | None, other: Path) -> bool:
    return path is not None and path.resolve().is_relative_to(other.resolve().parent)


def _imported(module: ModuleType, path: Path) -> list[ModuleType]:
    """The loaded modules that the source of a module imports, at its top or inside a function."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    package = module.__name__ if path.name == "__init__.py" else module.__name__.rpartition(".")[0]
    names = {name for node in ast.walk(tree) for name in _names(node, package)}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules]


def _names(node: ast.AST, package: str) -> Iterator[str]:
    """Full names of the modules that an import statement may load."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            parts = alias.name.split(".")
            yield from (".".join(parts[: count + 1]) for count in range(len(parts)))
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *filter(None, [node.module])])
        yield base
        yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
