"""Perplexity on texts: against one window at a time in float64, its means, and what it rests on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pico_contract.errors import UserError
from pico_contract.schema import Measurement
from pico_train.config import validate
from pico_train.data.packed import PackedData
from pico_train.evaluate.likelihood import TextEncoder
from pico_train.evaluate.tasks import EvaluateConfig, check_tasks
from pico_train.evaluate.text_perplexity import TextPerplexityConfig, text_perplexity, texts_settings
from pico_train.model.decoder import Decoder

from .conftest import Reference

SHORT = ["the king speaks.", "a", "love and war, tränen", "the sword falls " * 2]
LONG = ["the queen weeps and the crown falls. " * 12, "but " * 40]
POSITIONS = 24


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SHORT))
    pq.write_table(pa.table({"text": LONG}), tmp_path / "long.parquet")
    return {"short": str(tmp_path / "short.jsonl"), "long": str(tmp_path / "long.parquet")}


def measured(
    decoder: Decoder, data: PackedData, sources: dict[str, Any], start: Any = "eos", **changes: Any
) -> tuple[dict[str, Any], dict[str, Measurement]]:
    raw = {"sources": sources, "start_token": start, **changes}
    config, encoder = validate(TextPerplexityConfig, raw, "test"), TextEncoder(data.vocabulary, start)
    reading, window = config.reading(), config.seq_len or POSITIONS
    settings = texts_settings(reading, config, window) | encoder.settings()
    return settings, text_perplexity(decoder, reading, config, encoder, window)


def windowed(reference: Reference, ids: np.ndarray) -> np.ndarray:
    """Token losses, from windows that begin with the token before their first predicted one."""
    windows = [ids[start : start + POSITIONS + 1] for start in range(0, len(ids) - 1, POSITIONS)]
    return np.concatenate([reference.token_nll(window) for window in windows])


@pytest.mark.parametrize("start", ["eos", "none"])
@pytest.mark.parametrize("batch_tokens", [3, 8192])
def test_losses_equal_those_of_one_window_at_a_time(
    decoder: Decoder, reference: Reference, data: PackedData, sources: dict[str, str], start: Any, batch_tokens: int
) -> None:
    """1e-5 relative: float32 losses in another order of summation."""
    encoder = TextEncoder(data.vocabulary, start)
    _, found = measured(decoder, data, sources, start, batch_tokens=batch_tokens)
    perplexities, means, of_texts = [], [], []
    for name, texts in {"short": SHORT, "long": LONG}.items():
        sequences = [ids for ids in map(encoder, texts) if len(ids) > 1]
        nll = [windowed(reference, ids) for ids in sequences]
        whole = np.concatenate(nll)
        assert found[f"loss/{name}"].value == pytest.approx(whole.mean(), rel=1e-5)
        assert found[f"loss/{name}"].n == len(whole) == sum(len(ids) - 1 for ids in sequences)
        mean = np.mean([math.exp(each.mean()) for each in nll])
        assert found[f"mean_text_perplexity/{name}"].value == pytest.approx(mean, rel=1e-5)
        means.append(mean)
        perplexities.append(math.exp(whole.mean()))
        assert found[f"perplexity/{name}"].value == pytest.approx(perplexities[-1], rel=1e-5)
        of_texts += [math.exp(each.mean()) for each in nll]
    assert found["perplexity"].value == pytest.approx(np.mean(perplexities), rel=1e-5)
    assert found["mean_text_perplexity"].value == pytest.approx(np.mean(means), rel=1e-5)
    assert found["pooled_text_perplexity"].value == pytest.approx(np.mean(of_texts), rel=1e-5)
    assert np.mean(means) != pytest.approx(np.mean(of_texts), rel=1e-3), "one source has more texts than the other"
    assert found["mean_text_perplexity"].n == len(of_texts) == (6 if start == "eos" else 5)


def test_bits_per_byte_are_over_the_bytes_of_the_texts(
    decoder: Decoder, data: PackedData, sources: dict[str, str]
) -> None:
    _, found = measured(decoder, data, sources)
    for name, texts in {"short": SHORT, "long": LONG}.items():
        n_bytes, loss = sum(len(text.encode()) for text in texts), found[f"loss/{name}"]
        assert found[f"bits_per_byte/{name}"].n == n_bytes
        expected = loss.value * loss.n / math.log(2) / n_bytes
        assert found[f"bits_per_byte/{name}"].value == pytest.approx(expected, rel=1e-12)


def test_a_model_that_knows_nothing(decoder: Decoder, data: PackedData, sources: dict[str, str]) -> None:
    torch.nn.init.zeros_(decoder.lm_head.weight)
    _, found = measured(decoder, data, sources)
    for name in ("perplexity", "perplexity/long", "mean_text_perplexity", "mean_text_perplexity/short"):
        assert found[name].value == pytest.approx(280, rel=1e-5)


def test_settings_say_on_what_a_result_rests(decoder: Decoder, data: PackedData, sources: dict[str, str]) -> None:
    settings, _ = measured(decoder, data, sources)
    assert settings["sources"]["short"]["texts"] == 4
    assert settings["windows"] == "disjoint, 24 predicted tokens"
    assert settings["start_token"] == "eos (id 0)"
    assert settings["means"] == "over sources", "keeps results of another meaning from being read back"
    assert measured(decoder, data, sources, batch_tokens=7)[0] == settings
    assert measured(decoder, data, sources, "none")[0]["start_token"].startswith("none; the first id")
    first, found = measured(decoder, data, sources, texts=2)
    assert first["sources"]["short"] != settings["sources"]["short"]
    assert found["mean_text_perplexity"].n == 4
    path = Path(sources["short"])
    path.write_text(path.read_text().replace("king", "King"))
    assert measured(decoder, data, sources)[0] != settings


def test_texts_that_came_as_ids(decoder: Decoder, data: PackedData, sources: dict[str, str], tmp_path: Path) -> None:
    ids = [TextEncoder(data.vocabulary, "none")(text).tolist() for text in SHORT]
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"input_ids": each}) + "\n" for each in ids))
    as_ids, as_text = (measured(decoder, data, {"a": p})[1] for p in (str(path), sources["short"]))
    assert as_ids == as_text
    path.write_text('{"input_ids": [280]}')
    with pytest.raises(UserError, match='text 1 of the source "a" holds token ids outside the vocabulary of 280'):
        measured(decoder, data, {"a": str(path)})


def test_a_diverged_model_has_a_loss_and_no_perplexity(
    decoder: Decoder, data: PackedData, sources: dict[str, str]
) -> None:
    with torch.no_grad():
        decoder.lm_head.weight.mul_(1e4)
    _, found = measured(decoder, data, sources)
    assert found["loss"].value > 710
    assert {name.partition("/")[0] for name in found} == {"loss", "bits_per_byte"}


def test_what_cannot_be_evaluated_is_named(decoder: Decoder, data: PackedData, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match='the source "one" has no token to predict'):
        measured(decoder, data, {"one": str(tmp_path / "one.jsonl")}, "none")
    with pytest.raises(UserError, match=r"set evaluate\.text_perplexity\.sources"):
        measured(decoder, data, {})
    raw = {"text_perplexity": {"sources": {"one": str(tmp_path / "on.jsonl")}}}
    with pytest.raises(UserError, match=r'there is no source .*; did you mean "one.jsonl"'):
        check_tasks(data, validate(EvaluateConfig, raw, "test"))
