"""Hugging Face names and config.json: what is written opens there, and what this decoder lacks is refused by name."""

import json

import pytest
import torch
from pico_train.model.hf import config_from_hf, generation_config, hf_config, load_weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from .test_decoder import SHAPES, make, tokens

SPECIAL = {"eos": 0, "pad": 1, "mask": 2}


@pytest.mark.parametrize("shape", SHAPES)
def test_checkpoint_files_open_as_a_hugging_face_model(shape, tmp_path):
    model = make(SHAPES[shape])
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(hf_config(model.config, SPECIAL)))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation_config(SPECIAL)))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(opened, LlamaForCausalLM)
    ids = tokens(SHAPES[shape])
    torch.testing.assert_close(model(ids), opened(ids).logits, rtol=1e-5, atol=1e-5)
    assert config_from_hf(json.loads((tmp_path / "config.json").read_text())) == model.config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 99}, "head_dim"),
        ({"rope_scaling": [1]}, r"rope_scaling should be an object \(it is \[1\]\)"),
        ({"hidden_size": "32"}, r'hidden_size should be of type int \(it is "32"\)'),
        ({"tie_word_embeddings": 1}, r"tie_word_embeddings should be of type bool \(it is 1\)"),
        ({"rms_norm_eps": None}, "the key 'rms_norm_eps' is missing"),
    ],
)
def test_what_this_decoder_lacks_is_refused_by_name(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_from_hf({**hf_config(SHAPES["grouped"], SPECIAL), **change})


def test_a_configuration_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="holds a list where an object is expected"):
        config_from_hf([])


def test_wrong_tensors_are_named():
    model = make(SHAPES["grouped"])
    good = {name: p.detach() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r'"model\.norm\.weight" is missing'):
        load_weights(model, {k: v for k, v in good.items() if k != "model.norm.weight"})
    with pytest.raises(ValueError, match='"extra" is not one'):
        load_weights(model, {**good, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="shape"):
        load_weights(model, {**good, "model.norm.weight": torch.zeros(3)})
