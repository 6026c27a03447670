"""Docstrings and pages are plain English: the part of the rule that a program can check."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HEADLESS = {"pico_contract": 0, "pico_train": 0, "pico_analyze": 0, "examples": 0, "benchmarks": 0}
"""Docstrings of modules, classes and functions that begin with a word of `FIRST`. These numbers may only fall."""
HEADLESS_FIELDS = {"pico_contract": 0, "pico_train": 0, "pico_analyze": 0, "examples": 0, "benchmarks": 0}
"""The same for docstrings below constants and fields."""
DIALECT = {"pico_contract": 0, "pico_train": 0, "pico_analyze": 0, "examples": 0, "benchmarks": 0, "pages": 0}
"""Uses of `WORDS` in docstrings, and in Markdown outside code. These numbers may only fall."""

pytestmark = pytest.mark.filterwarnings("default:lower the numbers")

FIRST = re.compile(r"(What|Of|As|At|In|Where|Those|Which)\b")
WORDS = re.compile(
    r"\b(?:formed again|(?:is|are|was|were) (?:told|had)|but for|where there (?:is|are)|in hand"
    r"|as it is(?=[.,;:)]|$))",
    re.MULTILINE,
)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Docstring(NamedTuple):
    """A docstring and its line; `is_field` if it stands below a constant or field."""

    line: int
    text: str
    is_field: bool


def docstrings(tree: ast.Module) -> Iterator[Docstring]:
    """Every docstring of a module."""
    for node in ast.walk(tree):
        for position, statement in enumerate(node.body if isinstance(node, DOCUMENTED) else ()):
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield Docstring(value.lineno, value.value.strip(), position > 0)


def sources(modules: list[Any], root: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    """(part of the repository, path, syntax tree) of each source file."""
    for module in modules:
        yield module.name.partition(".")[0], module.path, module.tree
    for folder in ("examples", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            yield folder, path, ast.parse(path.read_text(encoding="utf-8"))


def pages(root: Path) -> list[Path]:
    """Every page of prose that is not a log."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md")), *sorted((root / "benchmarks").glob("*.md.in"))]


def check(allowed: dict[str, int], found: list[tuple[str, str]]) -> None:
    """Fail if a part has more than it may; warn if its number can be lowered."""
    counts = Counter(part for part, _ in found)
    more = [row for part, row in found if counts[part] > allowed[part]]
    assert more == [], "\n".join(more)
    lower = {part: counts[part] for part in allowed if counts[part] < allowed[part]}
    if lower:
        warnings.warn(f"lower the numbers in {Path(__file__).name} to {lower}", stacklevel=2)


@pytest.mark.parametrize(("allowed", "is_field"), [(HEADLESS, False), (HEADLESS_FIELDS, True)], ids=["code", "fields"])
def test_a_docstring_names_its_subject_first(
    modules: list[Any], root: Path, allowed: dict[str, int], is_field: bool
) -> None:
    found = [
        (part, f"{path.relative_to(root)}:{docstring.line}: {docstring.text.splitlines()[0]}")
        for part, path, tree in sources(modules, root)
        for docstring in docstrings(tree)
        if docstring.is_field == is_field and FIRST.match(docstring.text)
    ]
    check(allowed, found)


def test_prose_is_free_of_dialect(modules: list[Any], root: Path) -> None:
    found = []
    for part, path, tree in sources(modules, root):
        for docstring in docstrings(tree):
            hits = WORDS.finditer(docstring.text)
            found += [(part, f"{path.relative_to(root)}:{docstring.line}: {hit[0]}") for hit in hits]
    for path in pages(root):
        prose = CODE.sub("", path.read_text(encoding="utf-8"))
        found += [("pages", f"{path.relative_to(root)}: {hit[0]}") for hit in WORDS.finditer(prose)]
    check(DIALECT, found)
