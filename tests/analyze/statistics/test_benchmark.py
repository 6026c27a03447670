"""benchmarks/verdicts.py in short: its simulations show what it says, and it can fail."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pico_analyze.statistics import power


@pytest.fixture
def verdicts() -> Iterator[ModuleType]:
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "verdicts.py"
    spec = importlib.util.spec_from_file_location("verdicts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["verdicts"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["verdicts"]


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
def test_students_intervals_cover_the_truth_as_often_as_they_say(verdicts: ModuleType, runs: int) -> None:
    assert verdicts.coverage_of_pairs(runs, 40_000) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
def test_welchs_intervals_are_cautious_with_equal_numbers(verdicts: ModuleType, runs: int) -> None:
    assert 0.945 <= verdicts.coverage_of_welch(runs, runs, 3, 40_000) <= 0.985


def test_what_is_not_promised_is_worse(verdicts: ModuleType) -> None:
    assert verdicts.coverage_of_pairs(5, 40_000, verdicts.skewed) == pytest.approx(0.83, abs=0.02)
    assert verdicts.coverage_of_welch(2, 10, 1, 40_000) == pytest.approx(0.90, abs=0.01)
    assert verdicts.coverage_of_bootstrap(10, 2_000) == pytest.approx(0.90, abs=0.03)


@pytest.mark.parametrize(
    ("effect", "runs", "paired"), [(3.0, 3, True), (1.0, 10, True), (2.0, 2, False), (2.0, 3, False)]
)
def test_computed_power_is_simulated_power(verdicts: ModuleType, effect: float, runs: int, paired: bool) -> None:
    found = verdicts.simulated_power(effect, runs, paired, 40_000)
    assert found == pytest.approx(power(effect, runs, paired), abs=0.01)


def test_a_bound_that_fails_is_an_exit_code(
    verdicts: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = verdicts.Result("a", 0.95, (0.945, 0.955))
    monkeypatch.setattr(verdicts, "results", lambda: iter([good, verdicts.Result("b", 0.1)]))
    assert verdicts.main() == 0
    monkeypatch.setattr(verdicts, "results", lambda: iter([good, verdicts.Result("b", 0.94, (0.945, 0.955))]))
    assert verdicts.main() == 1
    assert "FAILS" in capsys.readouterr().out


def test_the_bound_of_a_simulated_rate_leaves_room_for_its_own_chance_alone(verdicts: ModuleType) -> None:
    assert 0.05 < verdicts._at_most(0.05, 1500) < 0.065
    assert verdicts.marked_maps(6, 6, True, 4, maps=150) <= verdicts._at_most(0.05, 150)
    assert np.isclose(verdicts.coverage_of_wilson(100, 0.1, 20_000), 0.937, atol=0.01)
