"""Which steps are measured, and what each is compared with."""

from __future__ import annotations

from typing import Any

import pytest
from pico_analyze.engine.steps import choose_base, choose_steps
from pico_contract.errors import UserError

TENS = range(0, 151, 10)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (None, tuple(TENS)),
        ([20, 0, 20], (0, 20)),
        ({"start": 0, "end": 100, "step": 30}, (0, 30, 60, 90)),
        ({"start": 0, "end": 90, "step": 30}, (0, 30, 60, 90)),
        ({"start": 10, "end": 100, "step": 30}, (10, 40, 70, 100)),
        ({"start": 130}, (130, 140, 150)),
        ({"end": 10}, (0, 10)),
        ({"step": 50}, (0, 50, 100, 150)),
        ({"start": 0, "end": 100, "step": 45}, (0, 90)),
        ({"end": 10_000, "step": 75}, (0, 150)),
        ({}, tuple(TENS)),
        ({"among": [140, 7, 0, 30, 30]}, (0, 30, 140)),
        ({"among": [140, 7, 0, 30], "end": 100}, (0, 30)),
    ],
)
def test_lists_and_ranges_never_beyond_the_end(steps: Any, expected: tuple[int, ...]) -> None:
    assert choose_steps(steps, TENS) == expected


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ([10, 37], "no step 37; the nearest is 40"),
        ({"strt": 0}, 'unknown key "strt"; did you mean "start"?'),
        ({"step": 0}, "step should be at least 1 but is 0"),
        ({"start": 200}, "no observed step lies in {'start': 200}; the run has 0, 10, 20"),
        ({"start": 50, "end": 40}, "no observed step lies in"),
        ({"among": [7]}, "no observed step lies in {'among': [7]}; the run has 0, 10, 20"),
    ],
)
def test_steps_that_are_not_there_are_named(steps: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        choose_steps(steps, TENS)
    assert sentence in str(error.value)


HELD = (0, 20, 30)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("first", {0: 0, 10: 0, 30: 0}),
        ("last", {0: 30, 10: 30, 30: 30}),
        ("previous", {10: 0, 30: 20}),
        (40, {0: 40, 10: 40, 30: 40}),
    ],
)
def test_each_step_is_compared_with_a_fixed_one_or_the_one_before(base: Any, expected: dict[int, int]) -> None:
    """40 was observed and does not hold what is compared: that is for the measurement to say."""
    assert choose_base("reference", base, (0, 10, 30), HELD, (*HELD, 40)) == expected


@pytest.mark.parametrize("base", ["first", "last", "previous"])
def test_where_nothing_is_held_nothing_is_compared(base: str) -> None:
    assert choose_base("reference", base, (0, 10), (), (0, 10)) == {}


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (7, "the window step 7 is not in the run; the nearest is 0"),
        ("middle", 'window should be "first", "last", "previous" or a step but is "middle"'),
        (True, 'or a step but is "True"'),
    ],
)
def test_what_is_no_step_is_refused(base: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        choose_base("window", base, (0, 10), HELD, HELD)
    assert sentence in str(error.value)
