"""Proportions, as ratchets: a number here may fall and must not rise."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Modules = list[Any]

LONGEST_FILE = 400
LONGEST_FUNCTION = 60
METHODS_WITHOUT_DOCSTRING = 37
"""Public methods whose name says all: paths of the layout, forward passes, shapes."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def public(body: list[ast.stmt], kinds: tuple[type, ...]) -> Iterator[Any]:
    return (node for node in body if isinstance(node, kinds) and not getattr(node, "name", "").startswith("_"))


def test_no_source_file_is_long(modules: Modules) -> None:
    sizes = {module.name: lines(module.path) for module in modules}
    assert {name: size for name, size in sizes.items() if size > LONGEST_FILE} == {}


def test_no_test_file_is_long(root: Path) -> None:
    sizes = {str(path.relative_to(root)): lines(path) for path in (root / "tests").rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 300} == {}


def test_functions_are_short(modules: Modules) -> None:
    functions = [node for module in modules for node in ast.walk(module.tree) if isinstance(node, Function)]
    lengths = sorted(node.end_lineno - node.lineno + 1 for node in functions)
    assert statistics.median(lengths) <= 12
    assert statistics.quantiles(lengths, n=20)[-1] <= 35
    assert lengths[-1] <= LONGEST_FUNCTION


def test_everything_public_says_what_it_is(modules: Modules) -> None:
    found = [module.name for module in modules if not ast.get_docstring(module.tree) and module.tree.body]
    for module in modules:
        for node in public(module.tree.body, (*Function.__args__, ast.ClassDef)):
            if not ast.get_docstring(node):
                found.append(f"{module.name}.{node.name}")
    assert found == []


def test_public_methods_without_a_docstring_do_not_become_more(modules: Modules) -> None:
    found = [
        f"{module.name}.{kind.name}.{method.name}"
        for module in modules
        for kind in public(module.tree.body, (ast.ClassDef,))
        for method in public(kind.body, Function.__args__)
        if not ast.get_docstring(method)
    ]
    assert len(found) <= METHODS_WITHOUT_DOCSTRING, found
