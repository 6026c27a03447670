"""The geometry of a model of any family, read from its configuration (config.json).

A configuration describes one stack of layers, or several: `text_config` and `vision_config`,
`encoder` and `decoder`, `encoder_attention_heads` and `decoder_attention_heads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pico_contract import names

_NAMES = {
    "model_type": (),
    "hidden_size": ("d_model", "n_embd", "embed_dim", "dim"),
    "intermediate_size": (
        "activation_hidden_dim",
        "n_inner",
        "ffn_dim",
        "d_ff",
        "ffn_hidden_size",
        "mlp_hidden_size",
        "hidden_dim",
    ),
    "num_hidden_layers": (
        "n_layers",
        "n_layer",
        "num_layers",
        "num_transformer_layers",
        "depth",
    ),
    "num_attention_heads": (
        "attention_n_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "num_query_heads",
    ),
    "num_key_value_heads": (
        "attention_n_kv_heads",
        "num_kv_heads",
        "n_kv_heads",
        "n_head_kv",
        "kv_n_heads",
        "multi_query_group_num",
    ),
    "head_dim": ("d_kv", "kv_channels"),
    "vocab_size": (),
    "tie_word_embeddings": (),
}
"""Hugging Face's usual name -> the names in other families."""
_BY_LAYER = ("num_attention_heads", "num_key_value_heads")
_STACK_WORDS = {
    "text": ("text", "language", "llm"),
    "vision": ("vision", "visual", "image", "vit"),
    "audio": ("audio", "speech"),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
}
"""Stack -> the beginnings of the names of its configurations and modules."""
_OF_SIDE = {
    "num_attention_heads": "attention_heads",
    "num_hidden_layers": "layers",
    "intermediate_size": "ffn_dim",
}
"""Hugging Face's usual name -> the ending behind `encoder_` and `decoder_`."""
STACKS = "stacks"
"""The key of the geometry of each stack, if the configuration describes several."""


class Heads(NamedTuple):
    """The query heads of an attention module, and the key-value heads that they share."""

    queries: int
    groups: int


def geometry(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the geometry from a model configuration, under Hugging Face's usual names.

    If the configuration describes several stacks, `stacks` contains the geometry of each. That of
    the text stack (or of the decoder) stands for the model if the configuration itself gives no
    heads.
    """
    shape, stacks = _top_level(config), _stacks(config)
    if "num_attention_heads" not in shape:
        main_stack = stacks.get("text") or stacks.get("decoder") or {}
        shape = main_stack | shape
        # The family of the layers is that of the stack, not that of the model around it.
        if "model_type" in main_stack:
            shape["model_type"] = main_stack["model_type"]
    if stacks:
        shape[STACKS] = stacks
    return shape


def heads_of(model: Mapping[str, Any], module: str) -> Heads | None:
    """Return the heads of a layer's attention; None if the configuration does not give them.

    Args:
        model: a result of `geometry`.
        module: the attention module, or a module in it.
    """
    shape, layer = stack_of(model, module), names.parse(f"{module}.weight").layer
    # Without key-value heads each query head has its own.
    queries = _in_layer(shape.get("num_attention_heads"), layer)
    groups = _in_layer(shape.get("num_key_value_heads", queries), layer)
    return None if queries is None or groups is None else Heads(queries, groups)


def stack_of(model: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """Return the geometry of a module's stack; {} if the configuration describes only others."""
    stacks = model.get(STACKS, {})
    for part in names.parse(f"{module}.weight").stack.split("."):
        stack = _stack_named(part)
        if stack in stacks:
            return stacks[stack]
        if stacks and stack in ("vision", "audio"):
            return {}
    return model


def describe(model: Mapping[str, Any]) -> str:
    """Describe a geometry: `hidden_size 16, num_attention_heads 2; vision: hidden_size 8`."""
    whole = ", ".join(f"{key} {value}" for key, value in model.items() if key != STACKS)
    parts = [whole] if whole else []
    for stack, shape in model.get(STACKS, {}).items():
        if not shape.items() <= model.items():
            parts.append(f"{stack}: {describe(shape)}")
    return "; ".join(parts)


def _top_level(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the geometry that the configuration gives outside of nested configurations."""
    # MPT and DBRX nest the heads in `attn_config`.
    given = {**_mapping(config.get("attn_config")), **config}
    shape: dict[str, Any] = {}
    for name, other_names in _NAMES.items():
        for key in (name, *other_names):
            if name not in shape and _is_known(name, given.get(key)):
                shape[name] = given[key]
    if _has_one_key_head(config):
        shape["num_key_value_heads"] = 1
    return shape


def _has_one_key_head(config: Mapping[str, Any]) -> bool:
    # Falcon keeps `multi_query` even if `new_decoder_architecture` makes it void; ChatGLM gives the
    # number of groups.
    if config.get("new_decoder_architecture") or "multi_query_group_num" in config:
        return False
    return bool(config.get("multi_query") or config.get("multi_query_attention"))


def _stacks(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the geometry of each stack that the configuration describes separately."""
    stacks: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        if not (isinstance(value, dict) and _describes_a_model(key)):
            continue
        nested = geometry(value)
        inner_stacks = nested.pop(STACKS, {})
        stack = _stack_named(key)
        if stack and (nested or inner_stacks):
            stacks.setdefault(stack, nested)
        for inner_stack, shape in inner_stacks.items():
            stacks.setdefault(inner_stack, shape)
    for side in ("encoder", "decoder"):
        shape = _side(config, side)
        if "num_attention_heads" in shape:
            stacks[side] = shape
    return stacks


def _side(config: Mapping[str, Any], side: str) -> dict[str, Any]:
    """Read the geometry of the encoder or the decoder from keys such as `encoder_layers`."""
    whole = _top_level(config)
    shape: dict[str, Any] = {
        name: whole[name] for name in ("model_type", "hidden_size") if name in whole
    }
    for name, ending in _OF_SIDE.items():
        value = config.get(f"{side}_{ending}")
        if _is_known(name, value):
            shape[name] = value
    return shape


def _describes_a_model(key: str) -> bool:
    return key.endswith("_config") or key in ("encoder", "decoder")


def _stack_named(name: str) -> str | None:
    for stack, words in _STACK_WORDS.items():
        if name.lower().startswith(words):
            return stack
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_known(name: str, value: Any) -> bool:
    """Return whether a value has the type that its name requires; others are ignored."""
    if name == "model_type":
        return isinstance(value, str)
    if name == "tie_word_embeddings":
        return isinstance(value, bool)
    if name in _BY_LAYER and isinstance(value, list):
        return bool(value) and all(map(_is_count, value))
    return _is_count(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _in_layer(count: int | list[int] | None, layer: int | None) -> int | None:
    if not isinstance(count, list):
        return count
    return count[layer] if layer is not None and layer < len(count) else None
