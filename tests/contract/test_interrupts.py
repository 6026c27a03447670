"""Signals of a small program: one line and an exit code, drafts removed; every moment of it is tried elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
from pathlib import Path
from pico_contract import codec
from pico_contract.interrupts import Program

def main():
    with codec.replacing(Path("kept.txt")) as draft:
        draft.write_text("half")
        BODY

sys.argv = ["prog", "data", "prepare"]
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
Program("prog", {"": "run it again", "data": "see data", "data prepare": "nothing was left"}).run(lambda: main)
"""


def ended(body: str, folder: Path) -> tuple[int, str]:
    (folder / "kept.txt").write_text("old")
    command = [sys.executable, "-c", PROGRAM.replace("BODY", body)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("name", "code", "event"),
    [
        ("SIGINT", 130, "interrupted"),
        ("SIGTERM", 143, "stopped by SIGTERM"),
        ("SIGHUP", 129, "stopped by SIGHUP"),
    ],
)
def test_a_signal_is_one_line_with_advice_and_leaves_no_draft(tmp_path: Path, name: str, code: int, event: str) -> None:
    found = ended(f"os.kill(os.getpid(), signal.{name})", tmp_path)
    assert found == (code, f"prog: {event}; nothing was left\n")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "old"


def test_without_a_signal_the_command_ends_as_it_would(tmp_path: Path) -> None:
    assert ended("pass", tmp_path) == (0, "")
    assert (tmp_path / "kept.txt").read_text() == "half"
    assert ended("sys.exit(3)", tmp_path) == (3, "")
    assert ended("sys.exit('a sentence')", tmp_path) == (1, "a sentence\n")
