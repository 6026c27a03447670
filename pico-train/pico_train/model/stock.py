"""The reference for a stock Llama: tensors and equations of LlamaForCausalLM, from config.json.

It repeats nothing of model/decoder.py, on purpose: comparing the two finds a decoder that somebody
changed, and its checkpoints then say that no class of transformers computes them.

Shapes: B batch, T tokens, D width, H query heads, K key-value heads, d head width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import sys
import tokenize
from collections.abc import Mapping
from typing import Any

import torch

from pico_train.model.decoder import Decoder, DecoderConfig

STOCK_CLASS = "LlamaForCausalLM"
_TOLERANCE = 1e-6
"""Largest difference of logits that passes, relative to the largest logit.

Everything is float64, except the rotary tables, which are float32.
"""
_LONGEST = 1_100
"""Most tokens on which the two are compared: more than an attention window of 1,024 positions.

A longer window is not noticed.
"""

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The class that computes a model: a stock one, or ours with its source hash and departure."""

    name: str = STOCK_CLASS
    source_sha256: str = ""
    departure: str = ""

    @property
    def is_stock(self) -> bool:
        """Whether the class of transformers that config.json names computes the same."""
        return self.name == STOCK_CLASS

    def record(self) -> dict[str, str]:
        """Return the fields that are not empty, for JSON."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}

    def __str__(self) -> str:
        return self.name if self.is_stock else f"{self.name} (source {self.source_sha256[:12]})"


STOCK = Architecture()


def architecture_of(config: DecoderConfig) -> Architecture:
    """Compare the decoder with a stock Llama of the same geometry, by tensors and by logits.

    Raises:
        ValueError: the decoder has a persistent buffer, which checkpoints would lack.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    buffers = decoder.state_dict().keys() - parameters.keys()
    if buffers:
        raise ValueError(
            f'the decoder has the buffer "{min(buffers)}", which checkpoints do not hold: make it a parameter, or'
            " register it with persistent=False"
        )
    departure = _departure_of_tensors(decoder, config) or _departure_of_logits(config)
    if departure is None:
        return STOCK
    name = f"{Decoder.__module__}.{Decoder.__qualname__}"
    return Architecture(name, _source_sha256(decoder), departure)


def stock_tensors(config: Mapping[str, Any]) -> Shapes:
    """Map name to shape for every tensor of the LlamaForCausalLM of `config` (a config.json)."""
    width, inner, vocab = (
        config["hidden_size"],
        config["intermediate_size"],
        config["vocab_size"],
    )
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or width // heads
    queries, keys = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    shapes: Shapes = {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
    }
    for i in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{i}.{module}.weight": shape for module, shape in layer.items()
        }
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, width)
    return shapes


def expected_tensors(config: DecoderConfig, architecture: Architecture) -> Shapes:
    """Map name to shape for every tensor of a checkpoint.

    They are those that config.json implies or, if the class is not a stock one, our decoder's.
    """
    if architecture.is_stock:
        return stock_tensors(dataclasses.asdict(config))
    with torch.device("meta"):
        return shapes_of(dict(Decoder(config).named_parameters()))


def difference(
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    whose: str = "this model's",
) -> str | None:
    """Name the first tensor that is missing, unknown or of another shape; None if all fit."""
    for name in [*expected, *shapes]:
        if name not in shapes:
            return f'the tensor "{name}" is missing'
        if name not in expected:
            return f'the tensor "{name}" is not one of {whose}'
        if tuple(shapes[name]) != tuple(expected[name]):
            return f'the tensor "{name}" has shape {tuple(shapes[name])} where {tuple(expected[name])} is expected'
    return None


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """Map each name to the shape of its tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def stock_logits(
    config: DecoderConfig, tensors: Mapping[str, torch.Tensor], input_ids: torch.Tensor
) -> torch.Tensor:
    """Compute the logits (B, T, V) of LlamaForCausalLM for ids (B, T), for small models.

    It says the equations as plainly as possible, and forms every mask and matrix in full.
    """
    embedding = tensors["model.embed_tokens.weight"]
    head = embedding if config.tie_word_embeddings else tensors["lm_head.weight"]
    x = embedding[input_ids]  # (B, T, D)
    for i in range(config.num_hidden_layers):
        layer = _below(tensors, f"model.layers.{i}.")
        normed = _norm(config, x, layer["input_layernorm.weight"])
        x = x + _attention(config, layer, normed)
        normed = _norm(config, x, layer["post_attention_layernorm.weight"])
        x = x + _mlp(layer, normed)
    return _norm(config, x, tensors["model.norm.weight"]) @ head.T


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _mlp(layer: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    gate = x @ layer["mlp.gate_proj.weight"].T
    up = x @ layer["mlp.up_proj.weight"].T
    return (gate * torch.sigmoid(gate) * up) @ layer["mlp.down_proj.weight"].T


def _norm(config: DecoderConfig, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * weight


def _attention(
    config: DecoderConfig, layer: Mapping[str, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    batch, tokens, width = x.shape
    groups = config.num_attention_heads // config.num_key_value_heads
    head_dim = width // config.num_attention_heads
    query, key, value = (
        (x @ layer[f"self_attn.{part}_proj.weight"].T)
        .view(batch, tokens, -1, head_dim)
        .transpose(1, 2)
        for part in "qkv"
    )
    # The tables are float32, as those of transformers are.
    rates = 1.0 / config.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(tokens).float(), rates).repeat(1, 2)  # (T, d)
    query, key = _rotate(query, angles), _rotate(key, angles)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT / head_dim**0.5  # (B, H, T, T)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
    return (
        mixed.transpose(1, 2).reshape(batch, tokens, width) @ layer["self_attn.o_proj.weight"].T
    )


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * angles.cos() + turned * angles.sin()


def _departure_of_tensors(decoder: Decoder, config: DecoderConfig) -> str | None:
    shapes = shapes_of(dict(decoder.named_parameters()))
    return difference(shapes, stock_tensors(dataclasses.asdict(config)), f"{STOCK_CLASS}'s")


def _departure_of_logits(config: DecoderConfig) -> str | None:
    """Compare the logits of narrow models that have the depth of `config`.

    One has the same heads on a few tokens; the other has a single head on many.
    """
    # Width 4 for a head: the only rotary frequency of width 2 is 1 for any rope_theta.
    same_heads = dataclasses.replace(
        config, hidden_size=4 * config.num_attention_heads, intermediate_size=16, vocab_size=32
    )
    one_head = dataclasses.replace(
        same_heads, hidden_size=2, num_attention_heads=1, num_key_value_heads=1
    )
    positions = config.max_position_embeddings
    trials = ((same_heads, min(positions, 16)), (one_head, min(positions, _LONGEST)))
    for narrow, length in trials:
        largest = _largest_difference(narrow, length)
        # Not written with >, because logits that are NaN must count as a departure.
        if not largest <= _TOLERANCE:
            return f"logits on {length} tokens differ by {largest:.1e} of the largest from those of {STOCK_CLASS}"
    return None


@torch.no_grad()
def _largest_difference(config: DecoderConfig, tokens: int) -> float:
    draws = torch.Generator().manual_seed(0)
    # On CPU, whatever the default device is.
    with torch.device("cpu"):
        decoder = Decoder(config).double().eval()
        # Weights of order one: with the small ones of initialisation a departure would hide.
        for parameter in decoder.parameters():
            mean = 1.0 if parameter.dim() < 2 else 0.0  # a norm's weights lie around one
            noise = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
            parameter.copy_(mean + 0.3 * noise)
        ids = torch.randint(config.vocab_size, (1, tokens), generator=draws)
        expected = stock_logits(config, dict(decoder.named_parameters()), ids)
        largest = (decoder(ids) - expected).abs().max()
        return float(largest / expected.abs().max())


def _source_sha256(decoder: Decoder) -> str:
    """Hash the source of all modules that define a part of `decoder`.

    Comments and layout are left out: they do not change what it computes.
    """
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE)
    defining = {type(part).__module__ for part in decoder.modules()}
    own = sorted(name for name in defining if name.partition(".")[0] != "torch")
    digest = hashlib.sha256()
    for name in own:
        lines = io.StringIO(_source(name)).readline
        for token in tokenize.generate_tokens(lines):
            if token.type not in ignored:
                digest.update(token.string.encode() + b"\0")
    return digest.hexdigest()


def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        raise ValueError(
            f"the decoder has a part from {module}, whose source cannot be read: define it in a file"
        ) from None
