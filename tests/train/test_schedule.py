"""Schedules: closed forms at the marks, and properties anywhere between them."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_train.schedule import ScheduleConfig, lr_factor

DECAYING = ["linear", "cosine"]
NAMES = [*DECAYING, "constant"]


@st.composite
def schedules(draw: st.DrawFn) -> tuple[ScheduleConfig, int]:
    """A schedule and a number of updates that its warm-up does not exceed."""
    total = draw(st.integers(1, 400))
    config = ScheduleConfig(draw(st.sampled_from(NAMES)), draw(st.integers(0, total)), draw(st.floats(0, 1)))
    return config, total


@pytest.mark.parametrize("name", NAMES)
def test_update_t_of_a_warmup_of_w_uses_t_over_w(name: str) -> None:
    config = ScheduleConfig(name, warmup_steps=4)
    assert [lr_factor(config, step, 100) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_without_warmup_the_first_update_uses_the_peak(name: str) -> None:
    assert lr_factor(ScheduleConfig(name), 1, 100) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_warmup_may_last_the_whole_run(name: str) -> None:
    config = ScheduleConfig(name, warmup_steps=10)
    assert [lr_factor(config, step, 10) for step in (1, 5, 10)] == [0.1, 0.5, 1.0]


def test_linear_decay() -> None:
    """From 1 at update 20 to 0.2 at update 101, one after the last."""
    config = ScheduleConfig("linear", warmup_steps=20, final_fraction=0.2)
    assert lr_factor(config, 20, 100) == 1.0
    assert lr_factor(config, 47, 100) == pytest.approx(0.2 + 0.8 * 54 / 81)
    assert lr_factor(config, 100, 100) == pytest.approx(0.2 + 0.8 / 81)


def test_cosine_decay() -> None:
    """Half way (update 51 between 1 and 101) it stands midway between peak and end."""
    config = ScheduleConfig("cosine", final_fraction=0.1)
    assert lr_factor(config, 51, 100) == pytest.approx(0.55)
    assert lr_factor(config, 26, 100) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert lr_factor(config, 100, 100) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))


def test_constant_stays_at_the_peak_whatever_its_final_fraction() -> None:
    config = ScheduleConfig("constant", warmup_steps=3, final_fraction=0.5)
    assert {lr_factor(config, step, 50) for step in range(3, 51)} == {1.0}


@pytest.mark.parametrize("name", DECAYING)
def test_a_final_fraction_of_one_is_constant(name: str) -> None:
    config = ScheduleConfig(name, final_fraction=1.0)
    assert {lr_factor(config, step, 50) for step in range(1, 51)} == {1.0}


@pytest.mark.parametrize("name", DECAYING)
def test_the_recipe_learns_in_its_last_update(name: str) -> None:
    """Pico's: 200,000 updates, 2,500 of warm-up, then to zero."""
    config = ScheduleConfig(name, warmup_steps=2500)
    assert 0 < lr_factor(config, 200_000, 200_000) < 1e-5
    assert lr_factor(config, 200_001, 200_000) == pytest.approx(0, abs=1e-15)


@settings(deadline=None)
@given(schedules())
def test_every_update_has_a_factor_above_zero_and_at_most_one(schedule: tuple[ScheduleConfig, int]) -> None:
    config, total = schedule
    assert all(0.0 < lr_factor(config, step, total) <= 1.0 for step in range(1, total + 1))


@settings(deadline=None)
@given(schedules())
def test_it_rises_to_the_peak_and_then_never_again(schedule: tuple[ScheduleConfig, int]) -> None:
    config, total = schedule
    factors = [lr_factor(config, step, total) for step in range(1, total + 1)]
    peak = max(config.warmup_steps, 1) - 1
    assert factors[peak] == 1.0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert min(factors[peak:]) >= (1.0 if config.name == "constant" else config.final_fraction) - 1e-12


@settings(deadline=None)
@given(schedules())
def test_there_are_no_jumps(schedule: tuple[ScheduleConfig, int]) -> None:
    """No step is larger than the steepest slope: 1 / W in the warm-up, pi / 2 of the mean slope in the decay."""
    config, total = schedule
    factors = [lr_factor(config, step, total) for step in range(1, total + 1)]
    start = max(config.warmup_steps, 1)
    for step, (before, after) in enumerate(pairwise(factors), start=2):
        slope = 1 / start if step <= start else math.pi / 2 / (total + 1 - start)
        assert abs(after - before) <= slope + 1e-12


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("warmup_steps", -1, "warmup_steps is -1; it must be 0 or more"),
        ("final_fraction", 1.5, "final_fraction is 1.5; it must lie between 0 and 1"),
        ("final_fraction", float("nan"), "final_fraction is nan; it must lie between 0 and 1"),
        ("restart_every", 10, "restart_warmup_steps is 0 and restart_every is 10; a warm-up of at least one"),
        ("restart_warmup_steps", 3, "restart_warmup_steps is 3 and restart_every is 0; a warm-up of at least one"),
    ],
)
def test_impossible_schedules_are_refused(field: str, value: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ScheduleConfig(**{field: value})


def test_a_jagged_schedule_in_closed_form() -> None:
    """Cycles of 10 begin at updates 11, 21, ...; the first lies within the warm-up of 12, and has none of its own."""
    config = ScheduleConfig("constant", warmup_steps=12, restart_every=10, restart_warmup_steps=4)
    factors = [lr_factor(config, step, 40) for step in range(1, 41)]
    warm_up, again = [step / 12 for step in range(1, 13)], [0.25, 0.5, 0.75, 1.0]
    assert factors == pytest.approx([*warm_up, *[1.0] * 8, *again, *[1.0] * 6, *again, *[1.0] * 6])


def test_a_cycle_warms_up_to_the_shape_where_its_warm_up_ends() -> None:
    plain = ScheduleConfig("linear", final_fraction=0.2)
    jagged = ScheduleConfig("linear", final_fraction=0.2, restart_every=10, restart_warmup_steps=5)
    target = lr_factor(plain, 15, 30)
    assert [lr_factor(jagged, step, 30) for step in range(11, 16)] == pytest.approx(
        [target * i / 5 for i in range(1, 6)]
    )
    assert all(lr_factor(jagged, step, 30) == lr_factor(plain, step, 30) for step in (*range(1, 11), *range(15, 21)))
    assert lr_factor(jagged, 23, 23) == pytest.approx(3 / 5 * lr_factor(plain, 23, 23))  # the run ends in it


@st.composite
def jagged_schedules(draw: st.DrawFn) -> tuple[ScheduleConfig, int]:
    plain, total = draw(schedules())
    every = draw(st.integers(2, 100))
    warm_up = draw(st.integers(1, every - 1))
    return dataclasses.replace(plain, restart_every=every, restart_warmup_steps=warm_up), total


@settings(deadline=None)
@given(jagged_schedules())
def test_restarts_lower_the_rate_and_never_to_zero(schedule: tuple[ScheduleConfig, int]) -> None:
    """science.md, row 4: earlier code had 0 at each restart, and refused cycles that the warm-up does not divide."""
    config, total = schedule
    plain = dataclasses.replace(config, restart_every=0, restart_warmup_steps=0)
    for step in range(1, total + 1):
        place = (step - 1) % config.restart_every + 1
        assert 0 < lr_factor(config, step, total) <= lr_factor(plain, step, total) + 1e-12
        if place >= config.restart_warmup_steps:
            assert lr_factor(config, step, total) == lr_factor(plain, step, total)
