"""A checkpoint is a Hugging Face model: it opens with transformers, without remote code, and computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_train import train
from pico_train.commands import open_checkpoint
from pico_train.data.packed import PackedData
from pico_train.data.tokenizer import load_tokenizer
from pico_train.model.generate import generate
from pico_train.run import RunConfig
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = ("the king speaks.", " and\n\nbut  the queen", "crown", "", "Größe, 王 🙂 'tis")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def run(request: pytest.FixtureRequest, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A short run that has been trained, so that no weight is what it was initialised to."""
    from pico_train.config import validate

    raw = {
        "name": "tiny",
        "runs_dir": str(tmp_path_factory.mktemp("interop")),
        "model": {
            "vocab_size": 300,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "rope_theta": 5000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": request.param,
        },
        "data": {"path": str(data_dir)},
        "train": {"steps": 6, "batch_size": 8, "device": "cpu"},
        "optimizer": {"lr": 0.02},
        "snapshot": {"every": 0},
    }
    config = validate(RunConfig, raw, "test")
    train(config, quiet=True)
    return config


@pytest.fixture
def step_dir(run: RunConfig) -> Path:
    return run.layout.checkpoint(6)


def written(step_dir: Path, name: str) -> dict[str, Any]:
    return json.loads((step_dir / name).read_text(encoding="utf-8"))


@pytest.fixture
def theirs(step_dir: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(step_dir).eval()


def test_logits_are_equal(run: RunConfig, theirs: LlamaForCausalLM, data_dir: Path) -> None:
    _, _, ours = open_checkpoint(run.layout.root, 6)
    ids = torch.from_numpy(PackedData.open(data_dir).split("validation").take(range(4)))
    assert type(theirs) is LlamaForCausalLM
    with torch.no_grad():
        expected = theirs(ids).logits
        found = ours(ids)
    assert (found - expected).abs().max() < 1e-5
    assert expected.std() > 0.1, "a model that says nothing would be equal to anything"


def test_nothing_is_missing_unexpected_or_reinitialised(step_dir: Path, run: RunConfig) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(step_dir, output_loading_info=True)
    assert {key: list(found) for key, found in info.items() if found} == {}
    assert model.dtype == torch.float32
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == run.model.tie_word_embeddings
    with safe_open(step_dir / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert ("lm_head.weight" in file.keys()) == (not run.model.tie_word_embeddings)  # noqa: SIM118


def test_greedy_generation_is_equal(run: RunConfig, theirs: LlamaForCausalLM) -> None:
    _, _, ours = open_checkpoint(run.layout.root, 6)
    prompt = torch.tensor([[5, 60, 7, 8], [100, 3, 9, 11]])
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    found = generate(ours, prompt, 24, temperature=0.0, eos_token_id=theirs.config.eos_token_id)
    assert found[:, : expected.shape[1]].tolist() == expected.tolist()


def test_the_tokenizer_gives_equal_ids_and_text(step_dir: Path, data_dir: Path) -> None:
    ours, theirs = load_tokenizer(data_dir), AutoTokenizer.from_pretrained(step_dir)
    assert isinstance(theirs, PreTrainedTokenizerFast)
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False)
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    # Special names in a text are text to us and control tokens to transformers unless it is told otherwise.
    named = "<|endoftext|>the<|pad|>"
    assert theirs(named, split_special_tokens=True)["input_ids"] == ours.encode(named).ids
    special = PackedData.open(data_dir).manifest.special_tokens
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (
        special["eos"],
        special["eos"],
        special["pad"],
    )
    assert theirs.model_max_length == 64


def test_a_padded_batch_equals_its_rows(theirs: LlamaForCausalLM, step_dir: Path) -> None:
    """Padding and mask work with the ids that the files name."""
    tokenizer = AutoTokenizer.from_pretrained(step_dir, padding_side="right")
    batch = tokenizer(["the king speaks", "a crown"], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = theirs(**batch).logits
        for row, text in enumerate(["the king speaks", "a crown"]):
            alone = theirs(**tokenizer(text, return_tensors="pt")).logits[0]
            assert (logits[row, : len(alone)] - alone).abs().max() < 1e-5


def test_the_files_say_what_transformers_4_needs(step_dir: Path, run: RunConfig, data_dir: Path) -> None:
    """Version 4 reads rope_theta, torch_dtype and a tokenizer class that it knows; 5 reads rope_parameters, dtype."""
    config, special = written(step_dir, "config.json"), PackedData.open(data_dir).manifest.special_tokens
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5000.0
    assert config["rope_parameters"]["rope_type"] == "default"
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["tie_word_embeddings"] is run.model.tie_word_embeddings
    assert config["head_dim"] == 8
    generation, tokenizer = written(step_dir, "generation_config.json"), written(step_dir, "tokenizer_config.json")
    for ids in (config, generation):
        expected = {"bos_token_id": special["eos"], "eos_token_id": special["eos"], "pad_token_id": special["pad"]}
        assert {key: ids[key] for key in expected} == expected
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tokenizer["eos_token"], tokenizer["pad_token"]) == ("<|endoftext|>", "<|pad|>")


def test_no_code_comes_with_a_checkpoint(step_dir: Path) -> None:
    assert not list(step_dir.rglob("*.py"))
    assert not list(step_dir.rglob("*.bin")) + list(step_dir.rglob("*.pt")) + list(step_dir.rglob("*.pkl"))
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in written(step_dir, name)
    config = AutoConfig.from_pretrained(step_dir, trust_remote_code=False)
    assert type(config).__name__ == "LlamaConfig"


def test_saved_again_by_transformers_it_is_still_the_same(
    theirs: LlamaForCausalLM, run: RunConfig, tmp_path: Path
) -> None:
    """What leaves through `save_pretrained` comes back through `init_from`."""
    from pico_train.checkpoint.init_from import initial_geometry, initial_weights

    theirs.save_pretrained(tmp_path / "again")
    assert initial_geometry(str(tmp_path / "again")) == run.model
    found, expected = initial_weights(str(tmp_path / "again")), initial_weights(f"{run.layout.root}@6")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_checkpoint_opens(run: RunConfig) -> None:
    for step in (0, 6):
        assert AutoModelForCausalLM.from_pretrained(run.layout.checkpoint(step)).config.hidden_size == 48


def test_data_without_a_tokenizer_gives_a_model_without_one(
    tiny: Callable[..., RunConfig], data_dir: Path, tmp_path: Path
) -> None:
    """Token ids from elsewhere: no tokenizer file, and the ids of special tokens are null rather than wrong."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pico_train.config import validate
    from pico_train.data.prepare import PrepareConfig, prepare

    rows = np.random.default_rng(0).integers(0, 200, (60, 40)).tolist()
    pq.write_table(pa.table({"input_ids": rows}), tmp_path / "ids.parquet")
    settings = {
        "source": str(tmp_path / "ids.parquet"),
        "out": str(tmp_path / "ids"),
        "seq_len": 16,
        "tokenizer": {"vocab_size": 200},
        "validation_fraction": 0.2,
    }
    prepare(validate(PrepareConfig, settings, "test"))
    config = tiny(**{"data.path": str(tmp_path / "ids"), "train.steps": 2, "snapshot.every": 0})
    train(config, quiet=True)
    directory = config.layout.checkpoint(2)
    assert not (directory / "tokenizer.json").exists()
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert (model.config.eos_token_id, model.config.pad_token_id, model.config.bos_token_id) == (None, None, None)
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 280)
