"""A small number of the mutations of benchmarks/fuzz_runs.py, with the same judge of how a command ends."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_no_damage_of_a_run_ends_in_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    fuzz_runs = importlib.import_module("fuzz_runs")
    tally = importlib.import_module("fuzzing").Tally()
    fuzz_runs.make_base(tmp_path)
    fuzz_runs.fuzz(tmp_path, range(10_000, 10_140), list(fuzz_runs.KINDS), False, tally)
    assert tally.problems == []
    assert sum(sum(codes.values()) for codes in tally.codes.values()) == 140
