"""Tasks: what a result file says, and that results under other settings lie beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_contract.schema import EvaluationManifest
from pico_train import train
from pico_train.config import validate
from pico_train.data.packed import PackedData
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.evaluate import paloma, tasks
from pico_train.evaluate.tasks import (
    EvaluateConfig,
    EvaluatedModel,
    ResultLocation,
    check_tasks,
    default_tasks,
    evaluate,
    in_one_line,
)
from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.run import RunConfig, build
from pico_train.trainer.loop import fit
from pico_train.trainer.resume import open_session
from pico_train.trainer.session import Session


@pytest.fixture
def data(data_dir: Path) -> PackedData:
    return PackedData.open(data_dir)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return RunLayout(tmp_path / "run")


def decoder(positions: int = 32) -> Decoder:
    config = DecoderConfig(280, 16, 24, 1, 2, 1, max_position_embeddings=positions)
    model = Decoder(config)
    model.init_weights(lambda name: torch.Generator().manual_seed(len(name)))
    return model.eval()


def evaluated(
    data: PackedData, layout: RunLayout, positions: int = 32, wanted: list[str] | None = None, **changes: Any
) -> dict[str, Any]:
    config = validate(EvaluateConfig, {"perplexity": changes}, "test")
    evaluated = EvaluatedModel(decoder(positions), data.vocabulary, 16, data)
    return evaluate(evaluated, config, ResultLocation(layout, "tiny", 40), wanted or ["perplexity"])


def files(layout: RunLayout) -> list[Path]:
    return sorted((layout.evaluations / "step_00000040").iterdir())


def test_a_result_file_says_what_was_measured_and_under_which_settings(data: PackedData, layout: RunLayout) -> None:
    results = evaluated(data, layout, rows=5)
    (path,) = files(layout)
    assert re.fullmatch(r"perplexity-[0-9a-f]{8}\.json", path.name)
    result = codec.read_manifest(path, EvaluationManifest)
    assert (result.run, result.step, result.task) == ("tiny", 40, "perplexity")
    assert result.settings == {
        "split": "validation",
        "rows": 5,
        "seq_len": 16,
        "start_token": "none; the first id of each row is context only",
        "data": data.manifest.fingerprint,
    }
    assert result.metrics == results["perplexity"]
    assert {name: (m.unit, m.n) for name, m in result.metrics.items() if name != "bits_per_byte"} == {
        "loss": ("nats/token", 80),
        "perplexity": ("1", 80),
    }


def test_results_under_other_settings_lie_side_by_side(data: PackedData, layout: RunLayout) -> None:
    for changes in [{"rows": 5}, {"rows": 6}, {"rows": 5, "seq_len": 4}, {"rows": 5, "batch_size": 3}]:
        evaluated(data, layout, **changes)
    assert len(files(layout)) == 3  # the batch size is no part of the result


def test_all_rows_are_the_default_and_more_cannot_be(data: PackedData, layout: RunLayout) -> None:
    every = evaluated(data, layout)["perplexity"]["loss"]
    assert every.n == data.split("validation").n_rows * 16
    assert evaluated(data, layout, rows=10**6)["perplexity"]["loss"] == every
    assert len(files(layout)) == 1


def test_rows_longer_than_the_model_are_cut_to_its_positions(data: PackedData, layout: RunLayout) -> None:
    short = evaluated(data, layout, positions=8, rows=5)["perplexity"]
    assert short["loss"].n == 5 * 8
    assert codec.read_manifest(files(layout)[0], EvaluationManifest).settings["seq_len"] == 8


def test_an_unknown_task_is_named_with_the_nearest(data: PackedData, layout: RunLayout) -> None:
    with pytest.raises(UserError, match='there is no task "perplexty"; did you mean "perplexity"'):
        evaluated(data, layout, wanted=["perplexty"])


def test_data_without_validation_rows_has_no_default_task(data: PackedData, layout: RunLayout, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the king speaks and the queen weeps")
    raw = {
        "source": str(tmp_path / "text.txt"),
        "out": str(tmp_path / "packed"),
        "seq_len": 4,
        "tokenizer": {"vocab_size": 280},
        "validation_fraction": 0,
    }
    bare = PackedData.open(prepare(validate(PrepareConfig, raw, "test")))
    assert default_tasks(data, EvaluateConfig()) == ["perplexity"]
    assert default_tasks(bare, EvaluateConfig()) == []
    with pytest.raises(UserError, match="has no validation rows to evaluate on; prepare it with a validation split"):
        evaluated(bare, layout)


def test_results_in_one_line(data: PackedData, layout: RunLayout) -> None:
    line = in_one_line(evaluated(data, layout, rows=2))
    assert re.fullmatch(r"perplexity: loss \d\.\d{4}, perplexity \d+\.\d{4}, bits_per_byte \d+\.\d{4}", line)


def test_training_evaluates_as_many_tokens_as_it_reads(tiny: Callable[..., RunConfig]) -> None:
    config = tiny(**{"train.seq_len": 6, "train.steps": 2, "snapshot.every": 0})
    train(config, quiet=True)
    (result,) = config.layout.evaluations.glob("step_00000002/*.json")
    assert codec.read_manifest(result, EvaluationManifest).settings["seq_len"] == 6


def test_training_evaluates_what_is_configured(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the king speaks and the queen weeps")
    sources = {"a": str(tmp_path / "text.txt")}
    changes = {"train.steps": 2, "snapshot.every": 0, "evaluate.text_perplexity.sources": sources}
    config = tiny(**changes)
    train(config, quiet=True)
    found = {path.name.partition("-")[0] for path in config.layout.evaluations.glob("step_00000002/*.json")}
    assert found == {"perplexity", "text_perplexity"}


def test_a_source_that_is_not_there_is_refused_before_training(tiny: Callable[..., RunConfig]) -> None:
    config = tiny(**{"evaluate.text_perplexity.sources": {"a": "nowhere.txt"}})
    with pytest.raises(UserError, match=r"there is no source nowhere\.txt"):
        train(config, quiet=True)
    assert not config.layout.root.exists()


def test_texts_are_read_as_training_reads(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the king speaks and the queen weeps " * 8)
    sources = {"a": str(tmp_path / "text.txt")}
    changes = {"train.seq_len": 6, "train.steps": 2, "snapshot.every": 0, "evaluate.text_perplexity.sources": sources}
    config = tiny(**changes)
    train(config, quiet=True)
    (result,) = config.layout.evaluations.glob("step_00000002/text_perplexity-*.json")
    assert codec.read_manifest(result, EvaluationManifest).settings["windows"] == "disjoint, 6 predicted tokens"


def test_a_source_that_fails_while_training_costs_its_task_alone(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the king speaks and the queen weeps")
    sources = {"a": str(text)}
    changes = {"train.steps": 4, "snapshot.every": 0, "evaluate.every": 2, "evaluate.text_perplexity.sources": sources}
    config = tiny(**changes)
    job = build(config)
    text.unlink()
    with open_session(job) as session:
        assert isinstance(session, Session)
        assert fit(session).status == "finished"
    said = capsys.readouterr().out
    assert "step 2: text_perplexity is left out, for it cannot be measured: " in said
    assert "there is no source" in said
    for step in (2, 4):
        found = [path.name.partition("-")[0] for path in config.layout.evaluations.glob(f"step_{step:08d}/*.json")]
        assert found == ["perplexity"]


def test_nothing_is_downloaded_before_training(data: PackedData, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(tasks, "documents", refused)
    monkeypatch.setattr(tasks, "read_pairs", refused)
    monkeypatch.setattr(paloma, "hub_subsets", refused)
    raw: dict[str, Any] = {
        "text_perplexity": {"sources": {"a": "hub:some/texts"}},
        "blimp": {"path": "hub:nyu-mll/blimp"},
    }
    raw["paloma"] = {"path": "hub:allenai/paloma"}
    check_tasks(data, validate(EvaluateConfig, raw, "test"))
