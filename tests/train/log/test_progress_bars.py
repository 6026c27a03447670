"""The progress of something long, as a person sees it."""

from __future__ import annotations

import pytest
from pico_train.evaluate.progress import Amount
from pico_train.log import progress_bars


def test_a_long_evaluation_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bars, "LINE_SECONDS", 0.0)
    lines: list[str] = []
    with progress_bars.show_evaluation(lines.append, None, "step 4: ", "blimp", Amount(30, 30, "sentences")) as advance:
        advance(10)
        advance(20)
    assert lines == [
        "step 4: evaluating blimp on all 30 sentences",
        "step 4: blimp: 10 of 30 sentences",
        "step 4: blimp: 30 of 30 sentences",
    ]
