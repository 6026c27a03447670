"""A run may begin with the weights of another run or of a Hugging Face directory; what does not fit is named."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import RunLayout
from pico_train import train
from pico_train.run import RunConfig
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

Tiny = Callable[..., RunConfig]


@pytest.fixture
def parent(tiny: Tiny) -> RunLayout:
    """A finished run with checkpoints 0, 4, 8 and 10."""
    config = tiny(**{"name": "parent", "snapshot.every": 0})
    train(config, quiet=True)
    return config.layout


@pytest.fixture
def child(tiny: Tiny) -> Callable[[str], RunConfig]:
    """A run of two updates that begins with the given weights."""

    def make(source: str | Path, **changes: Any) -> RunConfig:
        settings = {"name": "child", "init_from": str(source), "train.steps": 2, "snapshot.every": 0, **changes}
        return tiny(**settings, **{"seed.init": 99})

    return make


def llama(tiny: Tiny, **changes: Any) -> LlamaForCausalLM:
    """A Llama of transformers with the geometry of the tiny run."""
    geometry = dataclasses.asdict(tiny().model)
    theta = geometry.pop("rope_theta")
    config = LlamaConfig(**{**geometry, "rope_parameters": {"rope_type": "default", "rope_theta": theta}, **changes})
    torch.manual_seed(5)
    return LlamaForCausalLM(config)


def beginning(config: RunConfig) -> dict[str, torch.Tensor]:
    train(config, quiet=True)
    return codec.read_tensors(config.layout.checkpoint(0) / "model.safetensors")


def recorded_parent(config: RunConfig) -> str | None:
    parent: str | None = json.loads(config.layout.manifest.read_text())["parent"]
    return parent


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].float()) for name in expected)


@pytest.mark.parametrize(("step", "meant"), [("4", 4), ("latest", 10), ("00000008", 8)])
def test_a_run_continues_the_weights_of_another(
    parent: RunLayout, child: Callable[..., RunConfig], step: str, meant: int
) -> None:
    config = child(f"{parent.root}@{step}")
    found = beginning(config)
    assert_same(found, codec.read_tensors(parent.checkpoint(meant) / "model.safetensors"))
    assert recorded_parent(config) == f"{parent.root}@{meant}"
    counters = json.loads((config.layout.state(0) / "scalars.json").read_text())["counters"]
    assert (counters["step"], counters["tokens"], counters["reads"]) == (0, 0, 0), "weights alone are inherited"
    assert codec.read_tensors(config.layout.state(0) / "optimizer.safetensors") == {}


def test_a_run_of_its_own_has_no_parent(parent: RunLayout) -> None:
    assert json.loads(parent.manifest.read_text())["parent"] is None


def test_the_parent_may_vanish_once_the_run_exists(parent: RunLayout, child: Callable[..., RunConfig]) -> None:
    config = child(f"{parent.root}@latest", **{"train.steps": 6})
    train(config, quiet=True)
    shutil.rmtree(parent.root)
    assert train(config, quiet=True).status == "finished"
    shutil.rmtree(config.layout.checkpoint(6))
    assert train(config, quiet=True).status == "finished"  # on from checkpoint 4
    assert recorded_parent(config) == f"{parent.root}@10"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_directory_of_transformers(
    tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path, dtype: torch.dtype
) -> None:
    model = llama(tiny).to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    config = child(tmp_path / "theirs")
    found = beginning(config)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert_same(found, dict(model.state_dict()))
    assert recorded_parent(config) == str(tmp_path / "theirs")


def test_weights_in_several_files(tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path) -> None:
    model = llama(tiny)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    assert_same(beginning(child(tmp_path / "theirs")), dict(model.state_dict()))


def test_a_missing_part_of_several_is_named(tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path) -> None:
    llama(tiny).save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    part = sorted((tmp_path / "theirs").glob("model-*.safetensors"))[1]
    part.unlink()
    with pytest.raises(UserError, match=rf"{part.name} does not exist"):
        train(child(tmp_path / "theirs"), quiet=True)


def test_other_tensors_beside_the_model_are_not_read(
    tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Hub directories also hold consolidated copies and adapters."""
    model = llama(tiny)
    model.save_pretrained(tmp_path / "theirs")
    save_file({"something.else": torch.zeros(3)}, tmp_path / "theirs" / "consolidated.safetensors")
    assert_same(beginning(child(tmp_path / "theirs")), dict(model.state_dict()))


def test_tied_embeddings(tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path) -> None:
    model = llama(tiny, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "theirs")
    found = beginning(child(tmp_path / "theirs", **{"model.tie_word_embeddings": True}))
    assert "lm_head.weight" not in found
    assert torch.equal(found["model.embed_tokens.weight"], model.lm_head.weight)


def test_the_length_of_positions_may_differ(parent: RunLayout, child: Callable[..., RunConfig]) -> None:
    """No weight depends on it."""
    beginning(child(f"{parent.root}@4", **{"model.max_position_embeddings": 64}))


def refusal(config: RunConfig) -> str:
    """The sentence; a refused run leaves nothing behind."""
    with pytest.raises(UserError) as caught:
        train(config, quiet=True, source="child.yaml")
    assert not config.layout.root.exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_another_geometry_is_refused_with_all_that_differs(parent: RunLayout, child: Callable[..., RunConfig]) -> None:
    config = child(f"{parent.root}@4", **{"model.hidden_size": 64, "model.rope_theta": 5e5, "model.vocab_size": 300})
    assert refusal(config) == (
        f'child.yaml: init_from "{parent.root}@4" has another geometry: model.vocab_size is 300 but there 280;'
        " model.hidden_size is 64 but there 32; model.rope_theta is 500000.0 but there 10000.0"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "mistral"}, 'model_type is "mistral"; only "llama" is supported'),
        ({"attention_bias": True}, "attention_bias is true; this decoder has no biases"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"; only "silu" is supported'),
        ({"head_dim": 16}, "head_dim is 16; only hidden_size / num_attention_heads is supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, 'rope_scaling asks for rotary embeddings of type "yarn"'),
        ({"rms_norm_eps": None}, "the key 'rms_norm_eps' is missing"),
    ],
)
def test_another_architecture_is_refused(
    tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    llama(tiny).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    found = refusal(child(tmp_path / "theirs"))
    assert found.startswith(f'child.yaml: init_from "{tmp_path / "theirs"}": {path}: {sentence}')


def test_a_model_that_is_no_llama_is_refused(child: Callable[..., RunConfig], tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16)).save_pretrained(tmp_path / "gpt2")
    assert 'model_type is "gpt2"; only "llama" is supported' in refusal(child(tmp_path / "gpt2"))


@pytest.mark.parametrize("what", ["missing", "extra", "misshaped"])
def test_tensors_that_do_not_fit_are_named(
    tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path, what: str
) -> None:
    llama(tiny).save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors, name = load_file(file), "model.layers.1.mlp.up_proj.weight"
    if what == "missing":
        del tensors[name]
    elif what == "extra":
        name = "model.layers.1.mlp.up_proj.bias"
        tensors[name] = torch.zeros(48)
    else:
        tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    sentences = {
        "missing": f'the tensor "{name}" is missing',
        "extra": f'the tensor "{name}" is not one of this model\'s',
        "misshaped": f'the tensor "{name}" has shape (32, 48) where (48, 32) is expected',
    }
    with pytest.raises(UserError, match=re.escape(sentences[what])):
        train(child(tmp_path / "theirs"), quiet=True)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{run}@7", '{run} has no intact checkpoint "7"; it has: 0, 4, 8, 10'),
        ("{run}@last", '{run} has no intact checkpoint "last"; it has: 0, 4, 8, 10'),
        ("{run}", 'is a run: name a step, or write "{run}@latest"'),
        ("{run}/nowhere@4", "{run}/nowhere is not a run directory (it has no run.json)"),
        ("{run}/checkpoints", "{run}/checkpoints/config.json does not exist"),
        ("{run}/run.json", "{run}/run.json/config.json does not exist"),
    ],
)
def test_a_source_that_is_not_there_is_named(
    parent: RunLayout, child: Callable[..., RunConfig], source: str, sentence: str
) -> None:
    given = source.format(run=parent.root)
    found = refusal(child(given))
    assert found.startswith(f'child.yaml: init_from "{given}"')
    assert sentence.format(run=parent.root) in found


@pytest.mark.parametrize("given", ["{root}@latest", "{root}/checkpoints/step_00000010"])
def test_a_damaged_parent_is_named(parent: RunLayout, child: Callable[..., RunConfig], given: str) -> None:
    file = parent.checkpoint(10) / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 16
    file.write_bytes(raw)
    config = child(given.format(root=parent.root))
    with pytest.raises(DamagedError, match=rf"{file} does not have the sha256"):
        train(config, quiet=True)
    assert not config.layout.manifest.exists()


def test_a_directory_with_an_at_sign(tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path) -> None:
    model = llama(tiny)
    model.save_pretrained(tmp_path / "theirs@v2")
    config = child(tmp_path / "theirs@v2")
    assert_same(beginning(config), dict(model.state_dict()))
    assert recorded_parent(config) == str(tmp_path / "theirs@v2")


def test_a_directory_without_safetensors_is_named(tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path) -> None:
    llama(tiny).config.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"bare holds neither model.safetensors nor model.safetensors.index.json"):
        train(child(tmp_path / "bare"), quiet=True)


def test_an_index_that_names_no_file_is_named(tiny: Tiny, child: Callable[..., RunConfig], tmp_path: Path) -> None:
    llama(tiny).config.save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(DamagedError, match=r'model.safetensors.index.json is not an index .*"weight_map"'):
        train(child(tmp_path / "broken"), quiet=True)
