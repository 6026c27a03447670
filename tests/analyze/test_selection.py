"""Which steps are measured."""

from __future__ import annotations

from typing import Any

import pytest
from pico_analyze.selection import choose_steps
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
    ],
)
def test_steps_that_are_not_there_are_named(steps: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        choose_steps(steps, TENS)
    assert sentence in str(error.value)
