"""Hugging Face's files: config.json and its kin, written for transformers 4 and 5, read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.model.stock import (
    STOCK,
    STOCK_CLASS,
    Architecture,
    architecture_of,
    difference,
    shapes_of,
)

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

SpecialTokens = Mapping[str, int | list[int]]
"""Role (bos, eos, pad, mask) -> id, or several ids if a model ends a text with any of them."""

OWN_MODEL_TYPE = "pico-decoder"
"""Model type of a model that no stock class computes.

transformers does not know it and refuses to open such a checkpoint.
"""
_ARCHITECTURE = "pico_architecture"


def hf_config(
    config: DecoderConfig, special_tokens: SpecialTokens, architecture: Architecture = STOCK
) -> dict[str, Any]:
    """Build config.json of a LlamaForCausalLM, or of our own class if `architecture` is not stock.

    transformers 4 reads `rope_theta` and `torch_dtype`, transformers 5 `rope_parameters` and
    `dtype`: the file has both. Token ids are explicit, since the class defaults (1, 2) mean other
    tokens here. `special_tokens`: eos, pad, mask.
    """
    own = None if architecture.is_stock else architecture
    return {
        "architectures": [STOCK_CLASS if own is None else own.name.rpartition(".")[2]],
        "model_type": "llama" if own is None else OWN_MODEL_TYPE,
        **({_ARCHITECTURE: own.record()} if own is not None else {}),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_scaling": None,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
        **_token_id_keys(special_tokens),
    }


def generation_config(special_tokens: SpecialTokens) -> dict[str, Any]:
    """Build generation_config.json: only the token ids that a generator needs."""
    return {"_from_model_config": True, **_token_id_keys(special_tokens)}


def tokenizer_config(
    config: DecoderConfig, special_tokens: SpecialTokens, tokenizer: Path
) -> dict[str, Any]:
    """Build tokenizer_config.json for the tokenizer.json at `tokenizer`.

    Its class name is one that transformers 4 knows.
    """
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    words = {entry["id"]: entry["content"] for entry in content.get("added_tokens", [])}
    token_ids = _token_ids(special_tokens)
    named = {f"{role}_token": words.get(_first(ids)) for role, ids in token_ids.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        # If the key is missing, transformers 4 may remove spaces before punctuation.
        "clean_up_tokenization_spaces": False,
        # The default of the class includes token_type_ids, which Llama does not accept.
        "model_input_names": ["input_ids", "attention_mask"],
        **{key: word for key, word in named.items() if word is not None},
    }


def _token_ids(special_tokens: SpecialTokens) -> dict[str, int | list[int] | None]:
    """Map each role to its ids; without a bos token, a text begins with the end of another."""
    eos = special_tokens.get("eos")
    return {
        "bos": special_tokens.get("bos", _first(eos)),
        "eos": eos,
        "pad": special_tokens.get("pad"),
    }


def _token_id_keys(special_tokens: SpecialTokens) -> dict[str, int | list[int] | None]:
    return {f"{role}_token_id": token for role, token in _token_ids(special_tokens).items()}


def _first(ids: int | list[int] | None) -> int | None:
    return ids[0] if isinstance(ids, list) else ids


def config_from_hf(raw: Any) -> DecoderConfig:
    """Read the geometry in a config.json.

    Raises:
        ValueError: names the first feature that this decoder lacks (another architecture, scaled
            rotary embeddings, biases, another activation, a free head width), a missing key, or a
            value of a wrong type.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"it holds a {type(raw).__name__} where an object is expected")
    # A key that is null means what its absence means.
    raw = {key: value for key, value in raw.items() if value is not None}
    if raw.get("model_type") not in ("llama", OWN_MODEL_TYPE):
        raise ValueError(f'model_type is "{raw.get("model_type")}"; only "llama" is supported')
    is_llama = raw["model_type"] == "llama"
    if is_llama and (raw.get("architectures") or [STOCK_CLASS]) != [STOCK_CLASS]:
        raise ValueError(
            f'architectures is {raw["architectures"]}; only ["{STOCK_CLASS}"] is supported'
        )
    _refuse_unsupported(raw)
    _refuse_wrong_types(raw)
    # transformers 5 moved rope_theta below rope_parameters; 4 has it at the top.
    rope = raw.get("rope_parameters") or {}
    try:
        config = DecoderConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=raw["num_attention_heads"],
            # Files from before grouped queries lack the key.
            num_key_value_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            max_position_embeddings=raw["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
            rms_norm_eps=raw["rms_norm_eps"],
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            initializer_range=raw.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise ValueError(f"the key {error} is missing") from None
    if raw.get("head_dim") not in (None, config.head_dim):
        raise ValueError(
            f"head_dim is {raw['head_dim']}; only hidden_size / num_attention_heads is supported"
        )
    _refuse_other_architecture(config, STOCK if is_llama else _recorded_architecture(raw))
    return config


def refuse_own_model(raw: Mapping[str, Any]) -> None:
    """Raise a ValueError if the model of a config.json is not one that transformers computes."""
    if raw.get("model_type") == OWN_MODEL_TYPE:
        own = _recorded_architecture(raw)
        raise ValueError(
            f"{own} computes this model and no class of transformers does: {own.departure}"
        )


def _recorded_architecture(raw: Mapping[str, Any]) -> Architecture:
    known = [field.name for field in dataclasses.fields(Architecture)]
    try:
        return Architecture(
            **{key: str(value) for key, value in raw[_ARCHITECTURE].items() if key in known}
        )
    except (KeyError, AttributeError):
        raise ValueError(f"{_ARCHITECTURE} is missing or not an object") from None


def _refuse_other_architecture(config: DecoderConfig, recorded: Architecture) -> None:
    here = architecture_of(config)
    if (here.name, here.source_sha256) != (recorded.name, recorded.source_sha256):
        why = here.departure or recorded.departure or "its source differs"
        raise ValueError(f"it is a model of {recorded}, but this decoder is {here}: {why}")


_UNSUPPORTED = {
    "attention_bias": "biases",
    "mlp_bias": "biases",
    "sliding_window": "attention windows",
    "quantization_config": "quantised weights",
    "rope_interleaved": "interleaved rotary embeddings",
}
"""Key of config.json that, if set, asks for a feature that this decoder lacks -> its name."""


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        _refuse_other_rope(key, raw.get(key) or {})
    for key, feature in _UNSUPPORTED.items():
        if raw.get(key):
            raise ValueError(f"{key} is {json.dumps(raw[key])}; this decoder has no {feature}")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            "partial_rotary_factor is not 1; this decoder rotates the whole of each head"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f'hidden_act is "{raw["hidden_act"]}"; only "silu" is supported')


def _refuse_other_rope(key: str, rope: Any) -> None:
    if not isinstance(rope, Mapping):
        raise ValueError(f"{key} should be an object (it is {json.dumps(rope)})")
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type != "default":
        raise ValueError(
            f'{key} asks for rotary embeddings of type "{rope_type}"; only "default" is supported'
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"{key} sets partial_rotary_factor; this decoder rotates the whole of each head"
        )


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}
"""Type of a field -> types that JSON may give for it. A bool is not an int here."""


def _refuse_wrong_types(raw: Mapping[str, Any]) -> None:
    for field in dataclasses.fields(DecoderConfig):
        value = raw.get(field.name)
        if value is None:
            continue
        if type(value) not in _JSON_TYPES[str(field.type)]:
            raise ValueError(
                f"{field.name} should be of type {field.type} (it is {json.dumps(value)})"
            )


def load_weights(
    model: Decoder, tensors: Mapping[str, torch.Tensor], *, assign: bool = False
) -> None:
    """Load `tensors` (names of LlamaForCausalLM, any float dtype) into `model` as float32.

    With tied embeddings a head that equals the embedding is accepted. `assign` shares memory
    instead of copying, keeps the dtype, and works for a model on the meta device.

    Raises:
        ValueError: names a tensor that is missing, unknown or of another shape or dtype.
    """
    given = dict(tensors)
    if model.config.tie_word_embeddings and EMBEDDING in given and HEAD in given:
        head = given.pop(HEAD)
        if not torch.equal(head, given[EMBEDDING]):
            raise ValueError(
                f'"{HEAD}" differs from "{EMBEDDING}", but tie_word_embeddings is true'
            )
    expected = dict(model.named_parameters())
    problem = difference(shapes_of(given), shapes_of(expected))
    if problem is not None:
        raise ValueError(problem)
    for name, tensor in given.items():
        if not tensor.is_floating_point():
            raise ValueError(
                f'the tensor "{name}" is {str(tensor.dtype).removeprefix("torch.")}, not floating-point'
            )
    # A strict load wants every name of a tied parameter, not only the first.
    owners = {id(parameter): name for name, parameter in expected.items()}
    tied = {
        name: owners[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in expected
    }
    given |= {name: given[owner] for name, owner in tied.items()}
    model.load_state_dict(given, strict=True, assign=assign)
    if assign:
        # Assigning gave each name its own parameter: tie them again.
        for name, owner in tied.items():
            module, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(module), attribute, model.get_parameter(owner))
