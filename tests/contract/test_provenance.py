"""Which code ran: commit, difference and own modules, each changing exactly when the code does."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pico_contract.files import sha256_file
from pico_contract.provenance import CodeState, code_references, code_state, module_digests


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `laboratory` with a helper, in the directory `tmp_path/lab`, imported."""
    root = tmp_path / "lab"
    (root / "laboratory").mkdir(parents=True)
    (root / "laboratory" / "__init__.py").write_text("")
    (root / "laboratory" / "metric.py").write_text("import json\nfrom . import helper\nm = helper.f\n")
    (root / "laboratory" / "helper.py").write_text("def f(x):\n    return 1.0\n")
    (root / "laboratory" / "unused.py").write_text("")
    monkeypatch.syspath_prepend(root)
    importlib.import_module("laboratory.metric")
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "laboratory"]:
        del sys.modules[name]


def git(root: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *author, *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(package: Path) -> Path:
    git(package, "init", "-q")
    (package / ".gitignore").write_text("__pycache__\nignored.py\n")
    git(package, "add", ".")
    git(package, "commit", "-qm", "first")
    return package


def test_without_a_checkout_nothing_is_known(package: Path) -> None:
    assert code_state("laboratory") == CodeState(None, None, None)


def test_without_git_nothing_is_known(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_state("laboratory") == CodeState(None, None, None)


def test_a_package_installed_within_the_repository_of_others_has_no_commit(package: Path) -> None:
    git(package, "init", "-q")
    (package / "other.txt").write_text("theirs")
    git(package, "add", "other.txt")
    git(package, "commit", "-qm", "theirs")
    assert code_state("laboratory") == CodeState(None, None, None)


def test_a_clean_checkout_is_its_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    state = code_state("laboratory")
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_INDEX_FILE")
    assert state == CodeState(git(checkout, "rev-parse", "HEAD").strip(), False, None)


CHANGES = {
    "edited": lambda root: (root / "laboratory" / "helper.py").write_text("def f(x):\n    return 2.0\n"),
    "staged": lambda root: [
        (root / "laboratory" / "helper.py").write_text("def f(x):\n    return 2.0\n"),
        git(root, "add", "."),
    ],
    "removed": lambda root: (root / "laboratory" / "unused.py").unlink(),
    "untracked": lambda root: (root / "laboratory" / "new.py").write_text("x = 1\n"),
    "renamed": lambda root: (root / "laboratory" / "unused.py").rename(root / "laboratory" / "other.py"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_differs_from_the_commit_makes_it_dirty(checkout: Path, kind: str) -> None:
    commit = code_state("laboratory").commit
    CHANGES[kind](checkout)
    first = code_state("laboratory")
    assert (first.commit, first.dirty) == (commit, True)
    assert first.difference is not None
    assert len(first.difference) == 64
    assert code_state("laboratory") == first
    (checkout / "laboratory" / "metric.py").write_text("# more\n")
    assert code_state("laboratory").difference != first.difference


def test_an_untracked_file_counts_with_its_content(checkout: Path) -> None:
    new = checkout / "new.py"
    new.write_text("x = 1\n")
    first = code_state("laboratory").difference
    new.write_text("x = 2\n")
    assert code_state("laboratory").difference not in (None, first)


@pytest.mark.parametrize("name", ["ignored.py", "notes.txt"])
def test_what_no_code_is_or_is_ignored_does_not_make_it_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("x")
    assert code_state("laboratory").dirty is False


def test_a_module_counts_with_what_it_imports_from_its_folder(package: Path) -> None:
    folder = package / "laboratory"
    found = module_digests(["laboratory.metric:m"])
    assert found == {
        "laboratory": sha256_file(folder / "__init__.py"),
        "laboratory.helper": sha256_file(folder / "helper.py"),
        "laboratory.metric": sha256_file(folder / "metric.py"),
    }
    (folder / "helper.py").write_text("def f(x):\n    return 3.0\n")
    assert module_digests(["laboratory.metric:m"]) != found


def test_a_module_that_is_not_imported_or_has_no_source_is_left_out() -> None:
    assert module_digests(["nowhere:x", "sys:exit", "math:sqrt"]) == {}


def test_references_are_found_wherever_they_stand() -> None:
    raw = {"method": {"name": "mine:Method"}, "observe": [{"options": {"metrics": ["per", "a.b:c", "mine:Method"]}}]}
    assert code_references(raw) == ["mine:Method", "a.b:c"]
    assert code_references({"run": "hub:org/name@step*", "path": "C:/data", "time": "1:30", "empty": "x:"}) == []
