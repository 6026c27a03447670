"""The progress of an evaluation: every item is counted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pico_contract.layout import RunLayout
from pico_train.commands import evaluate_run
from pico_train.evaluate.progress import Amount
from pico_train.log import progress_bars


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [
        ("perplexity", "evaluate.perplexity.rows", "5"),
        ("text_perplexity", "evaluate.text_perplexity.sources", "{t: TEXT}"),
    ],
)
def test_a_task_reports_every_item_that_it_reads(
    finished: RunLayout, tmp_path: Path, task: str, key: str, value: str
) -> None:
    text = tmp_path / "t.txt"
    text.write_text("the king speaks\n\nthe queen weeps\n")
    seen: dict[str, Any] = {}

    def show(name: str, amount: Amount) -> Any:
        seen["amount"] = amount
        return progress_bars.show_evaluation(lambda line: None, Counting(seen), "", name, amount)

    evaluate_run(finished.root, None, [task], [f"{key}={value.replace('TEXT', str(text))}"], progress=show)
    assert seen["done"] == seen["amount"].count > 0


class Counting:
    """Bars that add up what they are told."""

    def __init__(self, seen: dict[str, Any]) -> None:
        self.seen = seen

    def add_task(self, description: str, total: int, info: str) -> int:
        self.seen["done"] = 0
        return 0

    def update(self, bar: int, advance: int) -> None:
        self.seen["done"] += advance

    def remove_task(self, bar: int) -> None:
        pass
