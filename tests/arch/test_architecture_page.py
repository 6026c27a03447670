"""ARCHITECTURE.md is true: its rooms are those of the layer contracts, and what it names exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

FOLDERS = ("", "pico-train/pico_train", "pico-analyze/pico_analyze", "shared/pico_contract")
"""Where a path of the page may begin."""


@pytest.fixture
def page(root: Path) -> str:
    return (root / "ARCHITECTURE.md").read_text(encoding="utf-8")


def layers_of(root: Path, package: str) -> list[set[str]]:
    """The rooms of a package, the highest line first; optional ones, in brackets, only if they exist."""
    settings: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == [package]]
    return [{name.strip() for name in line.split("|") if "(" not in name} - {""} for line in layers]


@pytest.mark.parametrize("package", ["pico_train", "pico_analyze"])
def test_each_room_stands_on_the_line_of_its_layer(root: Path, page: str, package: str) -> None:
    section = page.split(f"## Rooms of {package}\n")[1].split("\n## ")[0]
    stated: dict[int, set[str]] = {}
    for line, room in re.findall(r"^\| (\d+) \| `(\w+)(?:/|\.py)`", section, re.MULTILINE):
        stated.setdefault(int(line), set()).add(room)
    expected = [rooms for rooms in layers_of(root, package) if rooms]
    assert [stated[line] for line in sorted(stated)] == expected


def test_what_the_page_names_exists(root: Path, page: str) -> None:
    named = set(re.findall(r"`([\w./-]+\.(?:py|md|toml|txt)|[\w./-]+/)`", page))
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page)}
    assert len(named) > 30
    missing = [path for path in named | linked if not any((root / folder / path).exists() for folder in FOLDERS)]
    assert missing == []
