"""Code that a stored configuration names is imported only with --trust; one of the user's own needs none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pico_contract.layout import RunLayout
from pico_train.cli import main

METHOD = """
from pathlib import Path
from pico_train.method.plain import Plain
Path("ran").touch()
class Mine(Plain):
    pass
"""

COMMANDS = {
    "run DIRECTORY": ["run", "runs/tiny"],
    "run FILE": ["run", "runs/tiny/config.yaml"],
    "check": ["check", "runs/tiny"],
    "evaluate": ["evaluate", "runs/tiny"],
    "prune": ["prune", "runs/tiny", "--dry-run"],
    "push": ["push", "runs/tiny"],
    "data show": ["data", "show", "runs/tiny"],
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(finished: RunLayout, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a run whose method lies beside it, as an archive would bring both."""
    here = finished.root.parent.parent
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    (here / "theirs.py").write_text(METHOD)
    raw = yaml.safe_load(finished.config.read_text())
    raw["method"]["name"] = "theirs:Mine"
    finished.config.write_text(yaml.safe_dump(raw))
    (here / "own.yaml").write_text(yaml.safe_dump({**raw, "runs_dir": "elsewhere"}))
    return here


@pytest.fixture
def command(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pico-train", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(str(caught.value.code)), *capsys.readouterr()

    return run


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_stored_configuration_that_names_code_is_refused(command: Run, place: Path, kind: str) -> None:
    code, _, err = command(*COMMANDS[kind])
    assert code == 2
    assert "names code that would be imported and run: theirs:Mine" in err
    assert "--trust" in err
    assert not (place / "ran").exists()


@pytest.mark.parametrize("kind", ["check", "prune", "data show"])
def test_with_trust_it_is_imported(command: Run, place: Path, kind: str) -> None:
    code, _, err = command(*COMMANDS[kind], "--trust")
    assert (code, err) == (0, "")
    assert (place / "ran").exists()


@pytest.mark.parametrize("words", [["generate", "runs/tiny", "--tokens", "2"], ["export", "runs/tiny"], ["list"]])
def test_what_needs_no_code_imports_none(command: Run, place: Path, words: list[str]) -> None:
    assert command(*words)[0] == 0
    assert not (place / "ran").exists()


def test_a_configuration_of_the_users_own_needs_no_trust(command: Run, place: Path) -> None:
    assert command("check", "own.yaml")[0] == 0
    assert (place / "ran").exists()


def test_a_run_of_that_name_from_elsewhere_is_another_run_and_imports_nothing(command: Run, place: Path) -> None:
    raw = yaml.safe_load((place / "own.yaml").read_text())
    raw["method"]["name"] = "plain"
    (place / "plain.yaml").write_text(yaml.safe_dump({**raw, "runs_dir": "runs"}))
    code, _, err = command("run", "plain.yaml")
    assert code == 2
    assert "method.name (theirs:Mine -> plain) changed" in err
    assert not (place / "ran").exists()


def test_a_file_of_the_current_directory_takes_no_packages_place(command: Run, place: Path) -> None:
    (place / "tokenizers.py").write_text('from pathlib import Path\nPath("ran").touch()\n')
    command("list")
    assert sys.path[-1] == str(place)
