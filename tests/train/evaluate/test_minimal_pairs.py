"""BLiMP: log-probabilities of one sentence at a time, means by hand, ties, and what a record must hold."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pico_contract.errors import UserError
from pico_train.data.packed import PackedData
from pico_train.evaluate.likelihood import TextEncoder
from pico_train.evaluate.minimal_pairs import MinimalPair, minimal_pairs, read_pairs, sentence_nll
from pico_train.evaluate.tasks import EvaluateConfig, check_tasks
from pico_train.model.decoder import Decoder

from .conftest import Reference

PAIRS = [
    MinimalPair("the king speaks.", "the king speak.", "verbs", "agreement"),
    MinimalPair("the queen and a king weep in love.", "queen.", "verbs", "agreement"),
    MinimalPair("a sword falls", "a swords falls", "nouns", "agreement"),
    MinimalPair("but love rises!", "but rises love! and war", "order", "islands"),
    MinimalPair("the crown", "the crown", "order", "islands"),
]


def record(pair: MinimalPair) -> dict[str, Any]:
    return {
        "sentence_good": pair.good,
        "sentence_bad": pair.bad,
        "UID": pair.paradigm,
        "linguistics_term": pair.phenomenon,
        "field": "syntax",
    }


def written(folder: Path, pairs: list[MinimalPair]) -> Path:
    """One file a paradigm."""
    folder.mkdir()
    for name in {pair.paradigm for pair in pairs}:
        lines = [json.dumps(record(pair)) + "\n" for pair in pairs if pair.paradigm == name]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def test_accuracies_are_means_over_paradigms_and_ties_are_wrong(
    decoder: Decoder, reference: Reference, data: PackedData
) -> None:
    """Ten copies of a pair weigh in their paradigm, and no more than others in the whole."""
    encoder = TextEncoder(data.vocabulary, "eos")
    pairs = PAIRS[:2] + PAIRS[1:2] * 9 + PAIRS[2:]
    right: dict[str, list[bool]] = {}
    for pair in pairs:
        good, bad = (reference.token_nll(encoder(text)).sum() for text in (pair.good, pair.bad))
        right.setdefault(pair.paradigm, []).append(pair.good != pair.bad and good < bad)
    of = {name: np.mean(each) for name, each in right.items()}
    assert len(set(of.values())) == 3
    found = minimal_pairs(decoder, pairs, encoder, 64)
    expected = {
        "accuracy": (np.mean(list(of.values())), 14),
        "accuracy/phenomenon/agreement": ((of["verbs"] + of["nouns"]) / 2, 12),
        "accuracy/phenomenon/islands": (of["order"], 2),
        "accuracy/paradigm/nouns": (of["nouns"], 1),
        "accuracy/paradigm/verbs": (of["verbs"], 11),
        "accuracy/paradigm/order": (of["order"], 2),
    }
    assert {name: m.n for name, m in found.items()} == {name: n for name, (_, n) in expected.items()}
    for name, (value, _) in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12)


def test_a_model_that_knows_nothing_prefers_what_is_shorter(decoder: Decoder, data: PackedData) -> None:
    """Every token costs ln V, so that the sentences of a pair compare by their numbers of tokens; equal ones tie."""
    torch.nn.init.zeros_(decoder.lm_head.weight)
    encoder = TextEncoder(data.vocabulary, "eos")
    nll = sentence_nll(decoder, PAIRS, encoder, 64)
    for sentence, value in nll.items():
        assert value == pytest.approx((len(encoder(sentence)) - 1) * math.log(280), rel=1e-6)
    pair = MinimalPair("the king", "the king and the queen", "p", "f")
    swapped = MinimalPair(pair.bad, pair.good, "q", "f")
    tie = MinimalPair("the king", "the king", "r", "f")
    found = minimal_pairs(decoder, [pair, swapped, tie], encoder, 64)
    assert [found[f"accuracy/paradigm/{name}"].value for name in "pqr"] == [1, 0, 0]


def test_pairs_of_a_directory_and_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's layout: a subset a paradigm, one Parquet file each, named in the card."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert sorted(read_pairs(str(written(tmp_path / "blimp", PAIRS))), key=PAIRS.index) == PAIRS
    replica, card = tmp_path / "replica", ["---", "configs:"]
    for name in ("nouns", "order", "verbs"):
        (replica / name).mkdir(parents=True)
        rows = [record(pair) for pair in PAIRS if pair.paradigm == name]
        pq.write_table(pa.Table.from_pylist(rows), replica / name / "train-00000-of-00001.parquet")
        card += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/train-*"]
    (replica / "README.md").write_text("\n".join([*card, "---", ""]))
    assert sorted(read_pairs(f"hub:{replica}"), key=PAIRS.index) == PAIRS


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "evaluate.blimp.path: .* holds no minimal pair"),
        ('{"sentence_good": "a"}\n', 'line 1 has no field "sentence_bad"; did you mean "sentence_good"'),
        ('{"sentence_good": 3}\n', 'line 1: the field "sentence_good" holds no text'),
        ("{\n", "line 1 is not JSON"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_pairs(str(tmp_path))


def test_a_directory_that_is_not_there_is_named_before_training(data: PackedData, tmp_path: Path) -> None:
    (tmp_path / "blimp").mkdir()
    config = EvaluateConfig.model_validate({"blimp": {"path": str(tmp_path / "blmp")}})
    with pytest.raises(UserError, match=r'there is no directory .*blmp; did you mean "blimp"'):
        check_tasks(data, config)


def test_real_paradigms() -> None:
    folder = os.environ.get("PICO_TEST_DATA")
    if folder is None:
        pytest.skip("PICO_TEST_DATA is unset")
    pairs = read_pairs(str(Path(folder) / "blimp"))
    assert len(pairs) == 13_000
    assert len({pair.paradigm for pair in pairs}) == len({pair.phenomenon for pair in pairs}) == 13
    assert all(pair.good != pair.bad for pair in pairs)
