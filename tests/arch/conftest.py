"""The three packages as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "pico_contract": ROOT / "shared" / "pico_contract",
    "pico_train": ROOT / "pico-train" / "pico_train",
    "pico_analyze": ROOT / "pico-analyze" / "pico_analyze",
}


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module

    def imports(self, *, lazy: bool = True) -> set[str]:
        """Dotted names that are imported, those for type checking left out; without `lazy`, at module level alone."""
        return set(_imported(self.tree.body, lazy))

    def strings(self) -> Iterator[str]:
        """String constants, docstrings left out; the constant parts of f-strings included."""
        documentation = {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                yield node.value


def _imported(body: list[ast.stmt], lazy: bool) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if isinstance(statement, ast.FunctionDef) and not lazy:
            continue
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
        for inner in ("body", "orelse", "finalbody"):
            yield from _imported(getattr(statement, inner, []), lazy)
        for handler in getattr(statement, "handlers", []):
            yield from _imported(handler.body, lazy)


def _module(package: str, root: Path, path: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join([package, *(part for part in parts if part != "__init__")])
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    return [_module(package, root, path) for package, root in PACKAGES.items() for path in sorted(root.rglob("*.py"))]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT
