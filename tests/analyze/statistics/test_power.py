"""Power and numbers of runs: known values, closed forms, limits."""

from __future__ import annotations

import math

import pytest
from pico_analyze.statistics import detectable_effect, power, runs_needed
from scipy import stats


@pytest.mark.parametrize(
    ("effect", "paired", "runs"),
    [(0.5, True, 34), (0.8, True, 15), (0.2, True, 199), (0.5, False, 64), (0.8, False, 26)],
)
def test_runs_needed_are_those_of_cohens_tables(effect: float, paired: bool, runs: int) -> None:
    """Cohen 1988, table 2.4.1, and G*Power 3 for pairs: 80% power at 0.05, two-sided."""
    assert runs_needed(effect, paired) == runs
    assert runs_needed(-effect, paired) == runs


@pytest.mark.parametrize("effect", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("paired", [True, False])
def test_one_run_less_has_less_than_the_power_asked_for(effect: float, paired: bool) -> None:
    runs = runs_needed(effect, paired)
    assert power(effect, runs - 1, paired) < 0.8 <= power(effect, runs, paired)


def test_without_an_effect_power_is_alpha() -> None:
    for runs in (2, 3, 10, 100):
        assert power(0, runs) == pytest.approx(0.05)
        assert power(0, runs, paired=False) <= 0.05, "Welch's test is conservative with few runs"
    assert power(0, 30, paired=False) == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize("runs", [2, 3, 5, 20])
@pytest.mark.parametrize("paired", [True, False])
def test_the_detectable_effect_has_the_power_asked_for(runs: int, paired: bool) -> None:
    assert power(detectable_effect(runs, paired), runs, paired) == pytest.approx(0.8)
    assert power(detectable_effect(runs, paired, goal=0.5), runs, paired) == pytest.approx(0.5)


def test_the_normal_shortcut_promises_too_much() -> None:
    """(t_0.975 + t_0.8) / sqrt(n), taken for the detectable effect, finds it less often than four times in five."""
    for runs, found in ((2, 0.73), (3, 0.77), (5, 0.79)):
        shortcut = (stats.t.ppf(0.975, runs - 1) + stats.t.ppf(0.8, runs - 1)) / math.sqrt(runs)
        assert power(shortcut, runs) == pytest.approx(found, abs=0.02)
        assert detectable_effect(runs) > shortcut


@pytest.mark.parametrize("effect", [10, 1e3])
def test_a_large_effect_is_always_found(effect: float) -> None:
    assert power(effect, 10) == pytest.approx(1)
    assert runs_needed(effect) <= 3


def test_what_no_number_of_runs_finds_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        runs_needed(0)
    with pytest.raises(ValueError, match="too small"):
        runs_needed(1e-4)
    with pytest.raises(ValueError, match="at least two runs"):
        power(1, 1)
