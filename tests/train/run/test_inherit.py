"""A real model folder is a beginning as it is: geometry and token ids come from it; what is given must agree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pico_contract.errors import UserError
from pico_contract.layout import GENERATION_CONFIG, MODEL_CONFIG, TOKENIZER_CONFIG
from pico_train import train
from pico_train.checkpoint.model_folder import check_tensors, load_model, read_geometry, read_token_ids
from pico_train.commands import evaluate_run
from pico_train.config import load, validate
from pico_train.model.generate import generate
from pico_train.run import RunConfig
from pico_train.run.estimate import estimate
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

Tiny = Callable[..., RunConfig]
ROPE = {"rope_type": "default", "rope_theta": 1e5}


def smol(folder: Path, dtype: torch.dtype = torch.float32, shard: str = "1GB", **changes: Any) -> Path:
    """A folder like SmolLM2-135M's, narrow: tied, grouped queries, its own rotary base, an eps written as a float32."""
    settings = {
        "vocab_size": 280,
        "hidden_size": 36,
        "intermediate_size": 60,
        "num_hidden_layers": 3,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 64,
        "rms_norm_eps": 9.999999747378752e-06,
        "rope_parameters": ROPE,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 0,
        **changes,
    }
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**settings)).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def begin(raw: dict[str, Any]) -> Callable[..., RunConfig]:
    """A run whose configuration says of the model only what is given."""

    def make(source: Path | str, **model: Any) -> RunConfig:
        settings = {**raw, "name": "child", "init_from": str(source), "model": model}
        settings["train"] = {**raw["train"], "steps": 2}
        settings["snapshot"] = {"every": 0}
        return validate(RunConfig, settings, "child.yaml")

    return make


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tied, float32", {}),
        ("bfloat16", {"dtype": torch.bfloat16}),
        ("several files", {"shard": "20KB"}),
        ("untied", {"tie_word_embeddings": False}),
        ("no grouped queries", {"num_key_value_heads": 9}),
    ],
)
def test_geometry_that_is_not_given_comes_from_the_folder(
    begin: Callable[..., RunConfig], tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    folder = smol(tmp_path / "theirs", **options)
    config = begin(folder)
    assert config.model == read_geometry(folder)
    assert (config.model.num_hidden_layers, config.model.rope_theta) == (3, 1e5)
    train(config, quiet=True)
    written = yaml.safe_load(config.layout.config.read_text())["model"]
    assert written["hidden_size"] == 36
    assert written["rms_norm_eps"] == pytest.approx(1e-5, rel=1e-7)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(config.layout.checkpoint(0))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)


@pytest.mark.parametrize(
    "given",
    [
        {"rms_norm_eps": 1e-5},
        {"rms_norm_eps": 9.999999747378752e-06, "hidden_size": 36},
        {"max_position_embeddings": 32},
        {"initializer_range": 0.5},
    ],
)
def test_what_is_given_and_agrees_is_accepted(
    begin: Callable[..., RunConfig], tmp_path: Path, given: dict[str, Any]
) -> None:
    config = begin(smol(tmp_path / "theirs"), **given)
    assert {key: getattr(config.model, key) for key in given} == given
    assert train(config, quiet=True).status == "finished"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rms_norm_eps": 1e-6}, "model.rms_norm_eps is 1e-06 but there 9.999999747378752e-06"),
        ({"rms_norm_eps": 1.00001e-5}, "model.rms_norm_eps is 1.00001e-05 but there 9.999999747378752e-06"),
        ({"hidden_size": 72}, "model.hidden_size is 72 but there 36"),
        ({"tie_word_embeddings": False}, "model.tie_word_embeddings is False but there True"),
        ({"rope_theta": 1e4}, "model.rope_theta is 10000.0 but there 100000.0"),
        ({"vocab_size": 288}, "model.vocab_size is 288 but there 280"),
    ],
)
def test_what_is_given_and_differs_is_named_with_both_values(
    begin: Callable[..., RunConfig], tmp_path: Path, given: dict[str, Any], sentence: str
) -> None:
    folder = smol(tmp_path / "theirs")
    with pytest.raises(UserError, match=re.escape(f"has another geometry: {sentence}")):
        list(estimate(begin(folder, **given), "child.yaml"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 'rope_scaling asks for .* "linear"; only "default"'),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 'rope_parameters asks for .* "llama3"'),
        ({"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"attention_bias": True}, "attention_bias is true; this decoder has no biases"),
        ({"mlp_bias": True}, "mlp_bias is true; this decoder has no biases"),
        ({"sliding_window": 4096}, "sliding_window is 4096; this decoder has no attention windows"),
        ({"quantization_config": {"quant_method": "fp8"}}, "this decoder has no quantised weights"),
        ({"head_dim": 8}, "head_dim is 8; only hidden_size / num_attention_heads is supported"),
        ({"model_type": "qwen3"}, 'model_type is "qwen3"; only "llama" is supported'),
        ({"hidden_act": "relu"}, 'hidden_act is "relu"; only "silu" is supported'),
    ],
)
def test_a_feature_that_this_decoder_lacks_is_refused_by_name(
    begin: Callable[..., RunConfig], tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    folder = smol(tmp_path / "theirs")
    edit(folder / MODEL_CONFIG, **change)
    config = begin(folder)
    with pytest.raises(UserError, match=sentence):
        list(estimate(config, "child.yaml"))
    assert not config.layout.root.exists()


@pytest.mark.parametrize("kind", ["missing", "extra", "misshaped", "int8"])
def test_check_names_a_tensor_that_does_not_fit(begin: Callable[..., RunConfig], tmp_path: Path, kind: str) -> None:
    folder, name = smol(tmp_path / "theirs"), "model.layers.2.mlp.up_proj.weight"
    file = folder / "model.safetensors"
    tensors = load_file(file)
    changes = {
        "missing": (None, "is missing"),
        "misshaped": (tensors[name].T.contiguous(), r"has shape \(36, 60\) where \(60, 36\) is expected"),
        "int8": (tensors[name].to(torch.int8), "is I8, not floating-point"),
    }
    if kind == "extra":
        name = "model.layers.0.self_attn.q_norm.weight"
        changes[kind] = (torch.ones(4), "is not one of this model's")
    tensor, sentence = changes[kind]
    kept = {key: value for key, value in tensors.items() if key != name}
    save_file(kept if tensor is None else {**kept, name: tensor}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f'{file}: the tensor "{name}" {sentence}'):
        list(estimate(begin(folder), "child.yaml"))


def test_rotary_frequencies_of_old_files_are_left_out(begin: Callable[..., RunConfig], tmp_path: Path) -> None:
    folder = smol(tmp_path / "theirs")
    file = folder / "model.safetensors"
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save_file({**load_file(file), **buffer}, file, metadata={"format": "pt"})
    check_tensors(folder, read_geometry(folder))
    assert load_model(folder).config.num_attention_heads == 9


@pytest.mark.parametrize(
    ("source", "sentence"),
    [("nowhere", "nowhere/config.json does not exist"), ("nowhere@5", "nowhere is not a run directory")],
)
def test_a_mistaken_path_is_a_sentence(begin: Callable[..., RunConfig], source: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f'child.yaml: init_from "{source}": {sentence}'):
        train(begin(source), quiet=True, source="child.yaml")


@pytest.mark.parametrize("step", ["4", "latest"])
def test_geometry_comes_from_a_run_as_well(tiny: Tiny, begin: Callable[..., RunConfig], step: str) -> None:
    parent = tiny(**{"name": "parent", "snapshot.every": 0, "model.rope_theta": 5e4, "train.steps": 4})
    train(parent, quiet=True)
    config = begin(f"{parent.layout.root}@{step}")
    assert config.model == parent.model
    assert train(config, quiet=True).status == "finished"


def test_a_run_keeps_its_geometry_when_the_folder_is_gone(begin: Callable[..., RunConfig], tmp_path: Path) -> None:
    folder = smol(tmp_path / "theirs")
    train(begin(folder), quiet=True)
    folder.rename(tmp_path / "moved")
    again = begin(folder)  # from the same few keys
    assert again.model.hidden_size == 36
    assert train(again, quiet=True).status == "finished"
    assert load(RunConfig, again.layout.config).model == again.model


def test_token_ids_are_those_of_the_model_and_not_of_a_name(begin: Callable[..., RunConfig], tmp_path: Path) -> None:
    folder = smol(tmp_path / "theirs")
    edit(folder / GENERATION_CONFIG, eos_token_id=[5, 7])
    config = begin(folder)
    train(config, quiet=True)
    for file in (MODEL_CONFIG, GENERATION_CONFIG):
        written = json.loads((config.layout.checkpoint(2) / file).read_text())
        assert (written["bos_token_id"], written["eos_token_id"]) == (1, [5, 7])
    tokens = json.loads((config.layout.checkpoint(2) / TOKENIZER_CONFIG).read_text())
    assert tokens["bos_token"] == "<|pad|>"  # what id 1 is called in this vocabulary
    text = tmp_path / "text.txt"
    text.write_text("the king weeps and the queen speaks")
    source = f"evaluate.text_perplexity.sources.words.path={text}"
    evaluate_run(config.layout.root, None, ["text_perplexity"], [source])
    (result,) = config.layout.evaluations_at(2).glob("text_perplexity-*.json")
    assert json.loads(result.read_text())["settings"]["start_token"] == "bos (id 1)"


@pytest.mark.parametrize("value", [280, "<s>", [0, "x"], 1.5])
def test_an_impossible_token_id_is_named(tmp_path: Path, value: Any) -> None:
    folder = smol(tmp_path / "theirs")
    edit(folder / MODEL_CONFIG, eos_token_id=value)
    (folder / GENERATION_CONFIG).unlink()
    with pytest.raises(UserError, match=r"config.json: eos_token_id should be an id below vocab_size \(280\)"):
        read_token_ids(folder)


def test_generation_ends_with_any_of_several_tokens(tmp_path: Path) -> None:
    model = load_model(smol(tmp_path / "theirs"))
    ids = torch.tensor([[3, 4]])
    free = generate(model, ids, 6, temperature=0.0)[0, 2:].tolist()
    ended = generate(model, ids, 6, temperature=0.0, eos_token_id=[279, free[2]])
    assert ended[0, 2:].tolist() == free[: free.index(free[2]) + 1]
