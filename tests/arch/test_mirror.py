"""Tests mirror the packages: tests of a room lie in the folder of its name, and a module has a test file of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

SOURCES = {"analyze": Path("pico-analyze/pico_analyze"), "train": Path("pico-train/pico_train")}
"""Folder below tests/ -> the package that it mirrors."""
WITHOUT_TEST_OF_THEIR_NAME = {
    "analyze": {
        "audit/data",
        "audit/findings",
        "audit/log",
        "audit/unlisted",
        "commands/code_record",
        "commands/progress",
        "components/projections",
        "config/parts",
        "engine/evaluate",
        "engine/inputs",
        "engine/plan",
        "engine/work",
        "linalg/power_law",
        "linalg/scaling",
        "live",
        "metrics/unbiased",
        "plot/figures",
        "plot/panels",
        "sources/files",
        "sources/hub_series",
        "sources/hub_store",
        "sources/live_step",
        "sources/model",
        "sources/pickled",
        "sources/tensor_names",
    },
    "train": {
        "checkpoint/model_folder",
        "errors",
        "evaluate/results",
        "log/metrics",
        "method/relora/config",
        "observe/observed",
        "run/architecture",
        "run/build",
        "run/train_config",
    },
}
"""Modules whose tests have another name: the tests of their room exercise them. The set may only shrink."""


def modules(root: Path, folder: str) -> set[Path]:
    """Modules of the package that `folder` mirrors, as paths below it without suffix."""
    package = root / SOURCES[folder]
    paths = {path.relative_to(package).with_suffix("") for path in package.rglob("*.py")}
    return {path for path in paths if not path.name.startswith("__")}


def found_tests(root: Path, folder: str) -> set[Path]:
    """Test files below tests/`folder`, as paths below it without suffix."""
    base = root / "tests" / folder
    return {path.relative_to(base).with_suffix("") for path in base.rglob("test_*.py")}


@pytest.mark.parametrize("folder", SOURCES)
def test_every_test_lies_in_the_folder_of_a_room(root: Path, folder: str) -> None:
    rooms = {path.parent for path in modules(root, folder)} - {Path()}
    assert {path.parent for path in found_tests(root, folder)} - {Path()} <= rooms


@pytest.mark.parametrize("folder", SOURCES)
def test_a_test_outside_of_rooms_is_of_a_module_outside_of_rooms(root: Path, folder: str) -> None:
    at_top = tuple(f"test_{path.name}" for path in modules(root, folder) if path.parent == Path())
    loose = [path.name for path in found_tests(root, folder) if path.parent == Path()]
    assert [name for name in loose if not name.startswith(at_top)] == []


@pytest.mark.parametrize("folder", SOURCES)
def test_modules_have_a_test_file_of_their_name(root: Path, folder: str) -> None:
    there = found_tests(root, folder)
    without = {path for path in modules(root, folder) if path.with_name(f"test_{path.name}") not in there}
    assert {str(path) for path in without} == WITHOUT_TEST_OF_THEIR_NAME[folder]


@pytest.mark.parametrize("folder", SOURCES)
def test_helpers_lie_in_one_place(root: Path, folder: str) -> None:
    base = root / "tests" / folder
    found = {path.relative_to(base) for path in base.rglob("*.py")}
    assert [path for path in found if not path.name.startswith("test_") and path.name != "conftest.py"] == []
