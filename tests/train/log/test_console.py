"""What a run says of itself while it trains and evaluates, and the pace that it reports."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_train import train
from pico_train.evaluate.perplexity import DEFAULT_ROWS, PerplexityConfig
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig
from pico_train.run.estimate import estimate
from pico_train.trainer import loop

Tiny = Callable[..., RunConfig]


def test_the_first_update_of_a_session_is_shown_with_the_time_left(
    tiny: Tiny, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny(**{"log.console_every": 8}))
    out = capfd.readouterr().out
    assert [int(step) for step in re.findall(r"^step (\d+)/10  loss", out, re.M)] == [1, 8, 10]
    assert re.search(r"^step 8/10 .* tokens/s  0:00:0\d left$", out, re.M)
    assert re.search(r"^step 10/10 .* tokens/s$", out, re.M)


def test_an_evaluation_is_announced_with_what_it_reads(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    config = tiny(**{"evaluate.perplexity.rows": 3})
    train(config)
    out = capfd.readouterr().out
    for step in (4, 8, 10):
        assert re.search(rf"^step {step}: evaluating perplexity on 3 of \d+ validation rows\n", out, re.M)


def test_the_pace_leaves_out_saving_observing_and_evaluating(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation of half a second before update 5: its pace stays that of the updates around it."""
    evaluate = loop.evaluate

    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.5)
        return evaluate(*arguments, **named)

    monkeypatch.setattr(loop, "evaluate", slow)
    config = tiny(**{"snapshot.every": 0})
    train(config, quiet=True)
    rows = read_metrics(config.layout.metrics)
    tokens = rows[0]["tokens"]
    after_evaluation = tokens / rows[4]["tokens_per_second"]
    assert after_evaluation < 0.4, "seconds of the update after the evaluation"


def test_the_rows_of_an_evaluation_are_bounded_by_default_and_all_on_request(tiny: Tiny) -> None:
    assert PerplexityConfig().rows == DEFAULT_ROWS == 512
    assert tiny(**{"evaluate.perplexity.rows": None}).evaluate.perplexity.rows is None


def test_check_states_what_evaluation_adds(tiny: Tiny) -> None:
    config = tiny(**{"evaluate.perplexity.rows": 12, "evaluate.every": 4})
    (line,) = [line for line in estimate(config, "test") if line.startswith("evaluation")]
    # Three times 12 rows, a forward pass each, beside 10 updates of 8 rows.
    assert re.fullmatch(
        r"evaluation   3 times: perplexity on 12 of \d+ validation rows, 15.0% of the arithmetic of training", line
    )


def test_check_names_tasks_that_it_does_not_count(tiny: Tiny, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("the king speaks\n")
    config = tiny(**{"evaluate.text_perplexity.sources": {"t": {"path": str(text)}}})
    (line,) = [line for line in estimate(config, "test") if line.startswith("evaluation")]
    assert line.endswith("text_perplexity on top, not counted here")


@pytest.mark.parametrize(("every", "steps"), [(0, [10]), (4, [4, 8, 10]), (5, [5, 10]), (20, [10])])
def test_the_steps_of_evaluations(tiny: Tiny, every: int, steps: list[int]) -> None:
    config = tiny(**{"evaluate.every": every}).evaluate
    assert config.steps(10) == steps == [step for step in range(11) if config.due(step, 10)]
