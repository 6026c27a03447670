"""A sample of the fuzz of configurations, and of its judge; the whole is `python benchmarks/fuzz_configuration.py`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("fuzz_configuration")


@pytest.mark.slow
def test_every_mutation_ends_with_a_sentence(fuzz: ModuleType) -> None:
    fuzz.make_inputs()
    tally = fuzz.fuzz(count=10, seed=1)
    assert tally.problems == []
    assert sum(codes[2] for codes in tally.codes.values()) > 200, "most of them damage something"
    assert sum(codes[0] for codes in tally.codes.values()) > 0, "some of them do not"


def test_the_judge_tells_endings_apart(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = importlib.import_module("fuzzing")
    endings = {
        "a sentence": (lambda: sys.exit(2), "pico-train: no\n", None),
        "silence": (lambda: sys.exit(2), "", "exit code 2 without a sentence"),
        "an odd code": (lambda: sys.exit(3), "no", "exit code 3"),
        "a traceback": (lambda: sys.exit(1), "Traceback (most recent call last):", "a traceback"),
        "a long message": (lambda: sys.exit(2), "x" * 30_000, "a message of 30,000 characters"),
        "a hang": (lambda: [None for _ in iter(int, 1)], "", "hung for 0.2 s"),
    }
    for end, message, problem in endings.values():

        def main(end=end, message=message) -> None:  # type: ignore[no-untyped-def]
            sys.stderr.write(message)
            end()

        monkeypatch.setattr("pico_train.cli.main", main)
        assert judge.in_process("pico-train", [], seconds=0.2).problem == problem
    monkeypatch.setattr("pico_train.cli.main", lambda: 1 / 0)
    assert "ZeroDivisionError" in judge.in_process("pico-train", []).problem
