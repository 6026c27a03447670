"""Density of functions, as a ratchet: short is counted in ideas, not in lines."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path
from typing import Any

import pytest

PACKED = {"pico_contract": 3, "pico_train": 8, "pico_analyze": 28}
"""Functions of at least `FROM_LINES` lines with more than `NODES_A_LINE` syntax nodes a line. May only fall."""
NODES_A_LINE, FROM_LINES = 14, 8

pytestmark = pytest.mark.filterwarnings("default:lower the numbers")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(function: Function, lines: list[str]) -> int:
    """Lines of a function that are neither blank, comment nor docstring."""
    assert function.end_lineno is not None
    stripped = [line.strip() for line in lines[function.lineno - 1 : function.end_lineno]]
    count = sum(bool(line) and not line.startswith("#") for line in stripped)
    if ast.get_docstring(function) is None:
        return count
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    return count - (docstring.end_lineno - docstring.lineno + 1)


def packed(module: Any) -> list[str]:
    """The functions of a module that pack too much into a line."""
    lines = module.path.read_text(encoding="utf-8").splitlines()
    rows = []
    for function in ast.walk(module.tree):
        if not isinstance(function, Function):
            continue
        length = code_lines(function, lines)
        nodes = sum(1 for _ in ast.walk(function))
        if length >= FROM_LINES and nodes > NODES_A_LINE * length:
            rows.append(f"{module.name}.{function.name}: {nodes / length:.1f} nodes a line")
    return rows


def test_packed_functions_become_fewer(modules: list[Any]) -> None:
    found: dict[str, list[str]] = {package: [] for package in PACKED}
    for module in modules:
        found[module.name.partition(".")[0]] += packed(module)
    more = {package: rows for package, rows in found.items() if len(rows) > PACKED[package]}
    assert more == {}
    lower = {package: len(rows) for package, rows in found.items() if len(rows) < PACKED[package]}
    if lower:
        warnings.warn(f"lower the numbers in {Path(__file__).name} to {lower}", stacklevel=1)
