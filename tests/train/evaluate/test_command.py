"""`pico-train evaluate`: on which data, under which settings, and what is measured again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_train.commands import evaluate_run
from pico_train.config import validate
from pico_train.data.prepare import PrepareConfig, prepare


def test_an_evaluation_repeats_what_training_measured(finished: RunLayout) -> None:
    (written,) = finished.evaluations.glob("step_00000010/perplexity-*.json")
    before = json.loads(written.read_text())
    written.unlink()
    line = evaluate_run(finished.root, None, ["perplexity"])
    after = json.loads(written.read_text())
    assert after["metrics"] == before["metrics"]
    assert after["settings"] == before["settings"]
    assert line.startswith(f"step 10: perplexity: loss {after['metrics']['loss']['value']:.4f}, perplexity ")


def test_an_unknown_task_is_named_with_the_nearest(finished: RunLayout) -> None:
    with pytest.raises(UserError, match='there is no task "perplexty"; did you mean "perplexity"'):
        evaluate_run(finished.root, None, ["perplexty"])


def test_a_run_is_not_evaluated_on_other_data(finished: RunLayout, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("another text, of a queen and her crown. " * 40)
    raw = {"source": str(tmp_path / "text.txt"), "out": str(tmp_path / "other"), "seq_len": 16}
    prepare(validate(PrepareConfig, raw | {"tokenizer": {"vocab_size": 280}, "validation_fraction": 0}, "test"))
    with pytest.raises(UserError, match=r"other does not hold the data of .* is expected\): name the directory"):
        evaluate_run(finished.root, None, None, [f"data.path={tmp_path / 'other'}"])


def test_overrides_evaluate_what_the_run_did_not(finished: RunLayout, tmp_path: Path) -> None:
    # A beginning is more probable than what goes on from it, under any model.
    pair = {"sentence_good": "the king", "sentence_bad": "the king the the", "UID": "order", "linguistics_term": "word"}
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "order.jsonl").write_text(json.dumps(pair))
    (tmp_path / "text.txt").write_text("the queen weeps")
    overrides = [f"evaluate.blimp.path={tmp_path / 'pairs'}", f"evaluate.text_perplexity.sources.a={tmp_path}/text.txt"]
    assert evaluate_run(finished.root, 4, ["blimp"], overrides) == "step 4: blimp: accuracy 1.0000"
    line = evaluate_run(finished.root, None, None, overrides, again=True)
    assert re.fullmatch(r"step 10: perplexity: .*; text_perplexity: loss [^/]*; blimp: accuracy \S*", line)
    (result,) = finished.evaluations.glob("step_00000010/blimp-*.json")
    assert json.loads(result.read_text())["metrics"]["accuracy/paradigm/order"]["n"] == 1
    for task, words in (("blimp", "blimp has no sentences: set evaluate.blimp.path"), ("text_perplexity", "no text")):
        with pytest.raises(UserError, match=words):
            evaluate_run(finished.root, None, [task])


def test_a_result_that_is_there_is_read_back(finished: RunLayout) -> None:
    """Unless it is asked for again, is damaged, or is older than the checkpoint that it should be of."""
    (written,) = finished.evaluations.glob("step_00000010/perplexity-*.json")
    whole = json.loads(written.read_text())
    whole["metrics"]["loss"]["value"] = 1.5
    note = " (measured before under the same settings: perplexity; --again repeats)"

    def line(changes: dict[str, object], **how: bool) -> str:
        written.write_text(json.dumps({**whole, **changes}))
        return evaluate_run(finished.root, None, ["perplexity"], **how)

    assert line({}).startswith("step 10: perplexity: loss 1.5000, ")
    assert line({}).endswith(note)
    for measured in (line({}, again=True), line({"metrics": 3}), line({"created": "2020-01-01T00:00:00Z"})):
        assert "loss 1.5000" not in measured
        assert note not in measured
    assert json.loads(written.read_text())["metrics"]["loss"]["value"] != 1.5


def test_what_needs_no_rows_needs_no_data(finished: RunLayout, tmp_path: Path) -> None:
    """The same settings, hence the same tokenizer, start token and window, as with the data at hand."""
    (tmp_path / "text.txt").write_text("the queen weeps and the crown falls " * 4)
    source = f"evaluate.text_perplexity.sources.a={tmp_path}/text.txt"
    with_data = evaluate_run(finished.root, None, None, [source])
    (result,) = finished.evaluations.glob("step_00000010/text_perplexity-*.json")
    assert json.loads(result.read_text())["settings"]["seq_len"] == 16
    away = [source, f"data.path={tmp_path / 'away'}"]
    without = evaluate_run(finished.root, None, ["text_perplexity"], away)
    assert without.startswith("step 10: text_perplexity: ")
    assert without.removeprefix("step 10: ").partition(" (")[0] in with_data
    assert without.endswith("(measured before under the same settings: text_perplexity; --again repeats)")
    with pytest.raises(UserError, match="away is not a data directory"):
        evaluate_run(finished.root, None, ["perplexity"], away)
    finished.probe.unlink()
    with pytest.raises(UserError, match="nothing tells how many tokens"):
        evaluate_run(finished.root, None, ["text_perplexity"], away)
    assert evaluate_run(finished.root, None, ["text_perplexity"], [*away, "evaluate.text_perplexity.seq_len=16"])


def test_an_override_that_changes_the_run_is_refused(finished: RunLayout) -> None:
    with pytest.raises(UserError, match=r"model\.hidden_size is what .*tiny is, and no setting of its evaluation"):
        evaluate_run(finished.root, None, None, ["model.hidden_size=64"])
