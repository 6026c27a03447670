"""A checkpoint in EleutherAI's lm-evaluation-harness, as the Hugging Face model that it is."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from pico_contract.layout import RunLayout
from pico_train.commands import open_checkpoint
from pico_train.data.packed import PackedData
from pico_train.evaluate.likelihood import TextEncoder
from pico_train.evaluate.minimal_pairs import MinimalPair, minimal_pairs, sentence_nll

pytestmark = [
    pytest.mark.slow,  # the harness takes seconds to import
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install pico-train[lm-eval]"
    ),
    pytest.mark.filterwarnings("ignore"),  # the harness's own
]

WORDS = ["the king speaks", "a queen weeps", "the sword falls", "love and war", "but the crown rises", "war falls and"]
PAIRS = [
    MinimalPair(f"{first} {second}.", f"{second} {first[::-1]}." if i % 2 else f"{first[::-1]}.", "order", "words")
    for i, (first, second) in enumerate((a, b) for a in WORDS for b in WORDS)
]

# BLiMP's task as the harness has it, but for the space that it puts before each sentence by default.
TASK: dict[str, Any] = {
    "task": "pairs",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "validation_split": "train",
    "num_fewshot": 0,
    "doc_to_text": "",
    "target_delimiter": "",
    "doc_to_target": 0,
    "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = [json.dumps({"sentence_good": pair.good, "sentence_bad": pair.bad}) + "\n" for pair in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    return {**TASK, "dataset_kwargs": {"data_files": str(tmp_path / "pairs.jsonl")}}


def test_pairs_in_the_harness_are_pairs_here(finished: RunLayout, data_dir: Path, task: dict[str, Any]) -> None:
    """1e-4 nats a sentence: float32 in another order of summation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lm_eval

        found = lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={finished.checkpoint(10)},dtype=float32",
            tasks=[task],
            device="cpu",
            batch_size=4,
            bootstrap_iters=0,
            log_samples=True,
        )
    decoder = open_checkpoint(finished.root, 10)[2]
    encoder = TextEncoder(PackedData.open(data_dir).vocabulary, "eos")
    nll = sentence_nll(decoder, PAIRS, encoder, 64)
    samples = sorted(found["samples"]["pairs"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(PAIRS)
    for sample, pair in zip(samples, PAIRS, strict=True):
        theirs = [response[0] for response in sample["filtered_resps"]]
        assert theirs == pytest.approx([-nll[pair.good], -nll[pair.bad]], abs=1e-4)
    ours = minimal_pairs(decoder, PAIRS, encoder, 64)["accuracy"].value
    assert found["results"]["pairs"]["acc,none"] == pytest.approx(ours, abs=1e-12)
    assert 0 < ours < 1
