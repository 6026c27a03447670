"""Converted checkpoints compute the logits of the earlier decoder."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pico_train.checkpoint.init_from import initial_geometry, initial_weights
from pico_train.legacy.weights import convert_weights
from pico_train.model.decoder import Decoder
from pico_train.model.hf import load_weights
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ...support.earlier_models import CLOSE, VOCABULARY, WIDTH, drawn, earlier_logits, factors, saved

IDS = torch.randint(0, VOCABULARY, (20,), generator=torch.Generator().manual_seed(5))


def logits_of(directory: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    """From transformers, which must find nothing missing, and from ours as `init_from` opens it: the same."""
    decoder = Decoder(initial_geometry(str(directory)))
    load_weights(decoder, initial_weights(str(directory)))
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    batch = ids if ids.dim() == 2 else ids[None]
    with torch.no_grad():
        ours, theirs = decoder(batch), model(batch).logits
    assert torch.allclose(ours, theirs, rtol=0, atol=CLOSE)
    return theirs if ids.dim() == 2 else theirs[0]


def test_logits_are_the_earlier_ones(old: Path, tmp_path: Path) -> None:
    convert_weights(old, tmp_path / "new")
    found, expected = logits_of(tmp_path / "new"), earlier_logits(drawn(), IDS)
    assert expected.abs().max() > 1
    assert torch.allclose(found.double(), expected, rtol=0, atol=CLOSE)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


def test_without_the_order_of_rows_they_would_not_be(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pico_train.legacy.weights._pairs_to_halves", lambda weight, heads: weight)
    convert_weights(old, tmp_path / "new")
    assert (logits_of(tmp_path / "new").double() - earlier_logits(drawn(), IDS)).abs().max() > 0.1


@pytest.mark.parametrize("scaled", [False, True])
def test_low_rank_factors_are_added_as_the_forward_pass_did(tmp_path: Path, scaled: bool) -> None:
    base = drawn()
    low = factors(base, scaled=scaled)
    relora = {"r": 3, "lora_alpha": 12, "trainable_scaling": scaled}
    source = saved(tmp_path / "old", {**base, **low}, model_type="pico_relora_decoder", relora=relora)
    remarks = convert_weights(source, tmp_path / "new")

    def scale(module: str) -> float:
        return math.tanh(float(low[f"{module}.s"])) if scaled else 12 / 3

    expected = earlier_logits({**base, **low}, IDS, scale)
    assert (expected - earlier_logits(base, IDS)).abs().max() > 0.1, "the factors matter"
    assert torch.allclose(logits_of(tmp_path / "new").double(), expected, rtol=0, atol=2 * CLOSE)
    assert any("low-rank factors" in line for line in remarks)


def test_a_tokenizer_beside_the_weights_goes_along(old: Path, tmp_path: Path) -> None:
    words = {"<|endoftext|>": 0, "king": 1, "queen": 2}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(old / "tokenizer.json"))
    remarks = convert_weights(old, tmp_path / "new")
    found = AutoTokenizer.from_pretrained(tmp_path / "new", local_files_only=True)
    assert (found("queen")["input_ids"], found.eos_token) == ([2], "<|endoftext|>")
    assert AutoConfig.from_pretrained(tmp_path / "new").eos_token_id == 0
    assert not any(line.startswith("tokenizer.json") for line in remarks)


def as_pickle(source: Path) -> None:
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")


def as_fabric(source: Path) -> None:
    """What Fabric writes: the module's state under a wrapper's prefix, optimizer, scheduler, states of generators."""
    module = {
        name.replace("pico_decoder", "_forward_module"): t
        for name, t in load_file(source / "model.safetensors").items()
    }
    module["_forward_module.classifier_head.0.weight"] = torch.zeros(4, WIDTH)
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()}
    content = {"_model": module, "_optimizer": {"state": {}}, "_checkpoint_step": 20, "_rng_states": states}
    (source / "fabric_state").mkdir()
    torch.save(content, source / "fabric_state" / "checkpoint.pt")


@pytest.mark.parametrize("store", [as_pickle, as_fabric])
def test_other_files_of_weights_give_the_same(old: Path, tmp_path: Path, store: Callable[[Path], None]) -> None:
    convert_weights(old, tmp_path / "expected")
    store(old)
    (old / "model.safetensors").unlink()
    remarks = convert_weights(old, tmp_path / "new")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("new", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any("classifier_head" in line for line in remarks) == (store is as_fabric)


def test_the_files_of_fabric_alone_know_the_configuration_beside_them(old: Path, tmp_path: Path) -> None:
    as_fabric(old)
    convert_weights(old / "fabric_state", tmp_path / "new")
    assert torch.allclose(logits_of(tmp_path / "new").double(), earlier_logits(drawn(), IDS), rtol=0, atol=CLOSE)


def test_the_recorded_logits_of_pico_train_1(tmp_path: Path) -> None:
    data = os.environ.get("PICO_TEST_DATA")
    place = Path(data).parent / "reference" / "pico-1x" / "weights" / "step_30" if data else None
    if place is None or not place.is_dir():
        pytest.skip("needs reference/pico-1x/weights beside the directory that PICO_TEST_DATA names")
    convert_weights(place, tmp_path / "new")
    recorded = load_file(place / "logits.safetensors")
    found = logits_of(tmp_path / "new", recorded["input_ids"].long())
    assert torch.allclose(found, recorded["logits"], rtol=0, atol=CLOSE)
