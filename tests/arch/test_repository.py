"""The repository speaks of the project alone, and its versions agree."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

DISTRIBUTIONS = {"pico-contract": "shared", "pico-train": "pico-train", "pico-analyze": "pico-analyze"}
MODULES = {"yaml": "pyyaml"}
"""Import name -> distribution, where they differ."""
MACHINE = r"(?<![\w.~$}])/(?:home|Users|root|work|mnt|scratch|opt|private)/\w"
HOSTS = r"pypi\.org|pythonhosted|pytorch\.org/whl|anaconda\.org|artifactory|/simple\b|(?:extra-)?index-url"


@pytest.fixture(scope="module")
def projects(root: Path) -> dict[str, dict[str, Any]]:
    """Distribution -> its [project] table."""
    return {
        name: tomllib.loads((root / folder / "pyproject.toml").read_text())["project"]
        for name, folder in DISTRIBUTIONS.items()
    }


@pytest.fixture(scope="module")
def pinned(root: Path) -> dict[str, Version]:
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line pins one exact version"
    return {canonicalize_name(name): Version(version) for name, version in pins}


def tracked(root: Path) -> list[str]:
    """Files of the repository; of a copy without git, every file outside what tools make."""
    if shutil.which("git") and (root / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
        return [name for name in listed.split("\0") if name]
    made = {line.strip("/") for line in (root / ".gitignore").read_text().splitlines()}
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return [str(path) for path in paths if not made & set(path.parts) and ".egg-info" not in str(path)]


def declared(project: dict[str, Any]) -> list[Requirement]:
    extras = project.get("optional-dependencies", {}).values()
    return [Requirement(text) for text in [*project["dependencies"], *(text for extra in extras for text in extra)]]


@pytest.mark.parametrize("pattern", [MACHINE, HOSTS], ids=["a path of one machine", "the host of a registry"])
def test_no_tracked_file_names(root: Path, pattern: str) -> None:
    found = []
    for name in tracked(root):
        path = root / name
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().decode("utf-8", errors="ignore").splitlines(), start=1):
            if re.search(pattern, line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert found == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE, 'DATA = "/home/somebody/corpus"'),
        (MACHINE, "see /Users/me/x"),
        (HOSTS, "pip install --index-url=https://host/simple torch"),
    ],
)
def test_the_patterns_find_what_they_should(pattern: str, line: str) -> None:
    assert re.search(pattern, line)


def test_constraints_pin_every_declared_dependency(
    projects: dict[str, dict[str, Any]], pinned: dict[str, Version]
) -> None:
    assert pinned["torch"] == Version("2.13.0")
    needed = {r.name: r for project in projects.values() for r in declared(project) if r.name not in DISTRIBUTIONS}
    assert [name for name in needed if canonicalize_name(name) not in pinned] == []
    unfit = [str(r) for name, r in needed.items() if not r.specifier.contains(pinned[canonicalize_name(name)])]
    assert unfit == []


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_distribution_declares_what_it_imports(
    projects: dict[str, dict[str, Any]], modules: list[Any], distribution: str
) -> None:
    package = distribution.replace("-", "_")
    used = {
        name.split(".")[0] for module in modules if module.name.split(".")[0] == package for name in module.imports()
    } - {package}
    known = {canonicalize_name(requirement.name) for requirement in declared(projects[distribution])}
    third_party = {canonicalize_name(MODULES.get(name, name)) for name in used - set(sys.stdlib_module_names)}
    assert third_party - known == set()


def test_the_three_versions_are_one(projects: dict[str, dict[str, Any]]) -> None:
    versions = {name: project["version"] for name, project in projects.items()}
    assert len(set(versions.values())) == 1, versions
    (version,) = set(versions.values())
    for name, project in projects.items():
        module = importlib.import_module(name.replace("-", "_"))
        assert module.__version__ == version
        assert importlib.metadata.version(name) == version
        assert project["requires-python"] == ">=3.11"
        pins = [text for text in project["dependencies"] if text.startswith("pico-")]
        assert pins == ([] if name == "pico-contract" else [f"pico-contract=={version}"])
