"""Paloma: a local replica and the hub's, source by source as `text_perplexity` measures the same texts."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_contract.schema import EvaluationManifest
from pico_train.config import validate
from pico_train.data.packed import PackedData
from pico_train.evaluate.likelihood import TextEncoder
from pico_train.evaluate.paloma import PalomaConfig
from pico_train.evaluate.tasks import EvaluateConfig, EvaluatedModel, ResultLocation, check_tasks, evaluate
from pico_train.model.decoder import Decoder

from .conftest import Reference

TEXTS = {"c4_en": ["the king speaks.", "love and war, tränen"], "ptb": ["the sword falls " * 3, "a", "queen"]}
Write = Callable[[Path, list[str]], None]


def plain(folder: Path, texts: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "val.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts))


def compressed(folder: Path, texts: list[str]) -> None:
    """As on the hub: the files of a split in a directory of its own, here one a text."""
    (folder / "val").mkdir(parents=True)
    (folder / "test").mkdir()
    for number, text in enumerate(texts):
        with gzip.open(folder / "val" / f"val_{number}.jsonl.gz", "wt") as file:
            file.write(json.dumps({"text": text}) + "\n")
    (folder / "test" / "test.jsonl").write_text('{"text": "another split"}')


@pytest.fixture
def data(data_dir: Path) -> PackedData:
    return PackedData.open(data_dir)


@pytest.fixture
def measure(decoder: Decoder, data: PackedData, tmp_path: Path) -> Callable[..., EvaluationManifest]:
    """The result file of Paloma at `path`, in windows of 10 predicted tokens."""

    def result(path: str, **changes: Any) -> EvaluationManifest:
        config = validate(EvaluateConfig, {"paloma": {"path": path, **changes}}, "test")
        layout = RunLayout(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        evaluate(
            EvaluatedModel(decoder, data.vocabulary, 10, None), config, ResultLocation(layout, "tiny", 4), ["paloma"]
        )
        (file,) = layout.evaluations_at(4).iterdir()
        assert file.name.startswith("paloma-")
        return codec.read_manifest(file, EvaluationManifest)

    return result


@pytest.mark.parametrize("write", [plain, compressed])
def test_sources_of_a_directory(
    write: Write, tmp_path: Path, measure: Callable[..., Any], reference: Reference, data: PackedData
) -> None:
    """1e-5 relative: float32 losses in another order of summation."""
    for name, texts in TEXTS.items():
        write(tmp_path / "paloma" / name, texts)
    result = measure(str(tmp_path / "paloma"))
    encoder, perplexities, each, means = TextEncoder(data.vocabulary, "eos"), [], [], []
    for name, texts in TEXTS.items():
        ids = [encoder(text) for text in texts]
        nll = [
            np.concatenate([reference.token_nll(i[start : start + 11]) for start in range(0, len(i) - 1, 10)])
            for i in ids
        ]
        perplexities.append(math.exp(np.concatenate(nll).mean()))
        each += [math.exp(of.mean()) for of in nll]
        means.append(np.mean([math.exp(of.mean()) for of in nll]))
        assert result.metrics[f"perplexity/{name}"].value == pytest.approx(perplexities[-1], rel=1e-5)
        bits = np.concatenate(nll).sum() / math.log(2) / sum(len(text.encode()) for text in texts)
        assert result.metrics[f"bits_per_byte/{name}"].value == pytest.approx(bits, rel=1e-5)
    assert result.metrics["perplexity"].value == pytest.approx(np.mean(perplexities), rel=1e-5)
    assert result.metrics["mean_text_perplexity"].value == pytest.approx(np.mean(means), rel=1e-5)
    assert result.metrics["pooled_text_perplexity"].value == pytest.approx(np.mean(each), rel=1e-5)
    assert result.settings["start_token"] == "eos (id 0)"
    assert (result.settings["split"], result.settings["seq_len"]) == ("val", 10)
    assert {name: stated["texts"] for name, stated in result.settings["sources"].items()} == {"c4_en": 2, "ptb": 3}


def test_the_same_texts_from_the_hub(
    tmp_path: Path, measure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica of the hub's layout, read by the hub's own loader: subsets and splits named in the card."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    replica, card = tmp_path / "replica", ["---", "configs:"]
    for name, texts in TEXTS.items():
        compressed(replica / name, texts)
        card += [f"- config_name: {name}", "  data_files:", "  - split: val", f"    path: {name}/val/*"]
    (replica / "README.md").write_text("\n".join([*card, "---", ""]))
    found, local = measure(f"hub:{replica}"), measure(str(replica))
    assert (found.settings, found.metrics) == (local.settings, local.metrics)


def test_only_the_first_texts(tmp_path: Path, measure: Callable[..., Any]) -> None:
    plain(tmp_path / "paloma" / "ptb", TEXTS["ptb"])
    assert measure(str(tmp_path / "paloma"), texts=2).metrics["mean_text_perplexity"].n == 2


def refused(data: PackedData, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_tasks(data, EvaluateConfig(paloma=PalomaConfig(path=str(path))))
    return str(caught.value)


def test_what_is_wrong_is_named_before_training(data: PackedData, tmp_path: Path) -> None:
    folder = tmp_path / "paloma"
    plain(folder / "ptb", ["a"])
    assert "there is no directory" in refused(data, tmp_path / "palma")
    assert 'did you mean "paloma"' in refused(data, tmp_path / "palma")
    (tmp_path / "empty").mkdir()
    assert refused(data, tmp_path / "empty").endswith("empty holds no directory of a source")
    (folder / "gab").mkdir()
    assert "gab holds no .jsonl or .jsonl.gz file, nor does its directory val" in refused(data, folder)
    (folder / "gab" / "val.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 100)[:20])
    assert "val.jsonl.gz is not a whole gzip file" in refused(data, folder)
    (folder / "gab" / "val.jsonl.gz").write_bytes(gzip.compress(b'{"txt": "a"}\n'))
    assert 'line 1 has no field "text"; did you mean "txt"' in refused(data, folder)
