"""The shape of a model by its configuration (config.json), whatever its family calls it, for each
stack of layers.

A configuration speaks of one stack of layers, or of several: `text_config` and `vision_config`,
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
        *(
            "activation_hidden_dim",
            "n_inner",
            "ffn_dim",
            "d_ff",
            "ffn_hidden_size",
            "mlp_hidden_size",
            "hidden_dim",
        ),
    ),
    "num_hidden_layers": ("n_layers", "n_layer", "num_layers", "num_transformer_layers", "depth"),
    "num_attention_heads": (
        "attention_n_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "num_query_heads",
    ),
    "num_key_value_heads": (
        *(
            "attention_n_kv_heads",
            "num_kv_heads",
            "n_kv_heads",
            "n_head_kv",
            "kv_n_heads",
            "multi_query_group_num",
        ),
    ),
    "head_dim": ("d_kv", "kv_channels"),
    "vocab_size": (),
    "tie_word_embeddings": (),
}
"""Hugging Face's usual name -> what other families call it."""
_BY_LAYER = ("num_attention_heads", "num_key_value_heads")
_STACK_WORDS = {
    "text": ("text", "language", "llm"),
    "vision": ("vision", "visual", "image", "vit"),
    "audio": ("audio", "speech"),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
}
"""Stack -> how names of configurations, and of modules, that speak of it begin."""
_OF_SIDE = {
    "num_attention_heads": "attention_heads",
    "num_hidden_layers": "layers",
    "intermediate_size": "ffn_dim",
}
"""Usual name -> the ending behind `encoder_` and `decoder_`."""
STACKS = "stacks"
"""Key of the shapes of single stacks, where the configuration speaks of several."""


class Heads(NamedTuple):
    """Query heads of an attention module, and the key-value heads that they share."""

    queries: int
    groups: int


def geometry(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model configuration says of the shape, under Hugging Face's usual names; the rest is
    dropped.

    Where the configuration speaks of several stacks, `stacks` holds the shape of each, and the
    shape of the text stack (or of the decoder) stands for the model where the configuration itself
    gives no heads.
    """
    own, stacks = _own(config), _stacks(config)
    main = {} if "num_attention_heads" in own else stacks.get("text") or stacks.get("decoder") or {}
    family = {
        name: value for name, value in main.items() if name == "model_type"
    }  # of what the layers are
    return main | own | family | ({STACKS: stacks} if stacks else {})


def heads_of(model: Mapping[str, Any], module: str) -> Heads | None:
    """The heads of a layer's attention, by a name of the module or of what lies in it; None where
    nothing says them.

    Args:
        model: as `geometry` gives it.
    """
    shape, layer = stack_of(model, module), names.parse(f"{module}.weight").layer
    queries = _in_layer(shape.get("num_attention_heads"), layer)
    groups = _in_layer(shape.get("num_key_value_heads", queries), layer)
    return None if queries is None or groups is None else Heads(queries, groups)


def stack_of(model: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """The shape of the stack that a module lies in; {} where the configuration speaks of other
    stacks alone."""
    stacks = model.get(STACKS, {})
    for part in names.parse(f"{module}.weight").stack.split("."):
        stack = _stack_named(part)
        if stack in stacks:
            return stacks[stack]
        if stacks and stack in ("vision", "audio"):
            return {}
    return model


def describe(model: Mapping[str, Any]) -> str:
    """The shape in words: `hidden_size 16, num_attention_heads 2; vision: hidden_size 8`."""
    parts = [", ".join(f"{key} {value}" for key, value in model.items() if key != STACKS)]
    others = {
        stack: shape
        for stack, shape in model.get(STACKS, {}).items()
        if not shape.items() <= model.items()
    }
    parts += [f"{stack}: {describe(shape)}" for stack, shape in others.items()]
    return "; ".join(part for part in parts if part)


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """The shape that the configuration gives by itself."""
    given = {**_mapping(config.get("attn_config")), **config}
    found = {
        name: [given[key] for key in (name, *others) if key in given]
        for name, others in _NAMES.items()
    }
    known = {
        name: [value for value in values if _is_known(name, value)]
        for name, values in found.items()
    }
    shape = {name: values[0] for name, values in known.items() if values}
    one_key = config.get("multi_query") or config.get("multi_query_attention")
    # Falcon keeps `multi_query` where `new_decoder_architecture` makes it void; ChatGLM gives the
    # number of groups.
    if (
        one_key
        and not config.get("new_decoder_architecture")
        and "multi_query_group_num" not in config
    ):
        shape["num_key_value_heads"] = 1
    return shape


def _stacks(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The shape of each stack of which the configuration speaks apart."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        nested = geometry(value) if isinstance(value, dict) and _speaks_of_a_model(key) else {}
        stack = _stack_named(key)
        if stack and nested:
            found.setdefault(
                stack, {name: inner for name, inner in nested.items() if name != STACKS}
            )
        for inner, shape in nested.get(STACKS, {}).items():
            found.setdefault(inner, shape)
    for side in ("encoder", "decoder"):
        shape = {name: config.get(f"{side}_{ending}") for name, ending in _OF_SIDE.items()}
        if _is_known("num_attention_heads", shape["num_attention_heads"]):
            common = {
                name: value
                for name, value in _own(config).items()
                if name in ("model_type", "hidden_size")
            }
            found[side] = common | {
                name: value for name, value in shape.items() if _is_known(name, value)
            }
    return found


def _speaks_of_a_model(key: str) -> bool:
    return key.endswith("_config") or key in ("encoder", "decoder")


def _stack_named(name: str) -> str | None:
    return next(
        (stack for stack, words in _STACK_WORDS.items() if name.lower().startswith(words)), None
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_known(name: str, value: Any) -> bool:
    if name == "model_type":
        return isinstance(value, str)
    if name in _BY_LAYER and isinstance(value, list):
        return bool(value) and all(map(_is_count, value))
    return isinstance(value, bool) if name == "tie_word_embeddings" else _is_count(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _in_layer(count: int | list[int] | None, layer: int | None) -> int | None:
    if not isinstance(count, list):
        return count
    return count[layer] if layer is not None and layer < len(count) else None
