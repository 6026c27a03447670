"""Whether the decoder is a stock Llama: what LlamaForCausalLM holds and computes, from config.json
alone.

Written without a look at model/decoder.py, on purpose: a decoder that somebody changed is found out
by comparison, and its checkpoints then say that no class of transformers computes them.

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
"""Largest difference of logits, as a share of the largest logit: rotary tables are float32, all
else is float64."""
_LONGEST = 1_100
"""Tokens at most on which the two are compared, more than an attention window of 1,024. A longer
window goes unseen."""

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What computes a model: a stock class, or a class of ours with the hash of its source and how
    it departs."""

    name: str = STOCK_CLASS
    source_sha256: str = ""
    departure: str = ""

    @property
    def is_stock(self) -> bool:
        """Whether transformers computes the same under the class that config.json names."""
        return self.name == STOCK_CLASS

    def record(self) -> dict[str, str]:
        """The same for JSON, without what is empty."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}

    def __str__(self) -> str:
        return self.name if self.is_stock else f"{self.name} (source {self.source_sha256[:12]})"


STOCK = Architecture()


def architecture_of(config: DecoderConfig) -> Architecture:
    """Compare the decoder with a stock Llama of the same geometry, by tensors and by logits.

    Raises:
        ValueError: the decoder has a persistent buffer, which no checkpoint would hold.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    buffers = (
        decoder.state_dict().keys() - dict(decoder.named_parameters(remove_duplicate=False)).keys()
    )
    if buffers:
        raise ValueError(
            f'the decoder has the buffer "{min(buffers)}", which checkpoints do not hold: make it a parameter, or'
            " register it with persistent=False"
        )
    departure = _departure_of_tensors(decoder, config) or _departure_of_logits(config)
    if departure is None:
        return STOCK
    return Architecture(
        f"{Decoder.__module__}.{Decoder.__qualname__}", _source_sha256(decoder), departure
    )


def stock_tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor of the LlamaForCausalLM that `config` (a config.json)
    describes."""
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
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
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{module}.weight": shape for module, shape in layer.items()}
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, width)
    return shapes


def expected_tensors(config: DecoderConfig, architecture: Architecture) -> Shapes:
    """Name -> shape of every tensor of a checkpoint: what config.json implies or, if no stock
    class, our decoder's."""
    if architecture.is_stock:
        return stock_tensors(dataclasses.asdict(config))
    with torch.device("meta"):
        return shapes_of(dict(Decoder(config).named_parameters()))


def difference(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    whose: str = "this model's",
) -> str | None:
    """Say of the first tensor that is missing, unknown or of another shape; None where all fit."""
    for name in [*expected, *found]:
        if name not in found:
            return f'the tensor "{name}" is missing'
        if name not in expected:
            return f'the tensor "{name}" is not one of {whose}'
        if tuple(found[name]) != tuple(expected[name]):
            return f'the tensor "{name}" has shape {tuple(found[name])} where {tuple(expected[name])} is expected'
    return None


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def stock_logits(
    config: DecoderConfig, tensors: Mapping[str, torch.Tensor], input_ids: torch.Tensor
) -> torch.Tensor:
    """Compute the logits (B, T, V) of LlamaForCausalLM for ids (B, T), as its equations say; for
    small models."""
    embedding = tensors["model.embed_tokens.weight"]
    head = embedding if config.tie_word_embeddings else tensors["lm_head.weight"]
    x = embedding[input_ids]  # (B, T, D)
    for i in range(config.num_hidden_layers):
        prefix = f"model.layers.{i}."
        layer = {
            name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)
        }
        x = x + _attention(config, layer, _norm(config, x, layer["input_layernorm.weight"]))
        h = _norm(config, x, layer["post_attention_layernorm.weight"])
        gate, up = h @ layer["mlp.gate_proj.weight"].T, h @ layer["mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ layer["mlp.down_proj.weight"].T
    return _norm(config, x, tensors["model.norm.weight"]) @ head.T


def _norm(config: DecoderConfig, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * weight


def _attention(
    config: DecoderConfig, layer: Mapping[str, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    batch, tokens, width = x.shape
    heads, groups = (
        config.num_attention_heads,
        config.num_attention_heads // config.num_key_value_heads,
    )
    head_dim = width // heads
    query, key, value = (
        (x @ layer[f"self_attn.{part}_proj.weight"].T)
        .view(batch, tokens, -1, head_dim)
        .transpose(1, 2)
        for part in "qkv"
    )
    rates = 1.0 / config.rope_theta ** (
        torch.arange(0, head_dim, 2).float() / head_dim
    )  # float32, as transformers has
    angles = torch.outer(torch.arange(tokens).float(), rates).repeat(1, 2)  # (T, d)
    query, key = (
        part * angles.cos()
        + torch.cat((-part[..., head_dim // 2 :], part[..., : head_dim // 2]), -1) * angles.sin()
        for part in (query, key)
    )
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT / head_dim**0.5  # (B, H, T, T)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
    return mixed.transpose(1, 2).reshape(batch, tokens, width) @ layer["self_attn.o_proj.weight"].T


def _departure_of_tensors(decoder: Decoder, config: DecoderConfig) -> str | None:
    found, expected = (
        shapes_of(dict(decoder.named_parameters())),
        stock_tensors(dataclasses.asdict(config)),
    )
    return difference(found, expected, f"{STOCK_CLASS}'s")


def _departure_of_logits(config: DecoderConfig) -> str | None:
    """Compare logits of narrow models of the same depth: with the same heads, and with one head on
    many tokens."""
    tokens = min(config.max_position_embeddings, 16)
    same_heads = dataclasses.replace(
        config, hidden_size=4 * config.num_attention_heads, intermediate_size=16, vocab_size=32
    )
    long = dataclasses.replace(
        same_heads, hidden_size=2, num_attention_heads=1, num_key_value_heads=1
    )
    for narrow, length in (
        (same_heads, tokens),
        (long, min(config.max_position_embeddings, _LONGEST)),
    ):
        largest = _largest_difference(narrow, length)
        if not largest <= _TOLERANCE:
            return f"logits on {length} tokens differ by {largest:.1e} of the largest from those of {STOCK_CLASS}"
    return None


@torch.no_grad()
def _largest_difference(config: DecoderConfig, tokens: int) -> float:
    draws = torch.Generator().manual_seed(0)
    with torch.device("cpu"):
        decoder = Decoder(config).double().eval()
        for parameter in decoder.parameters():
            around = 1.0 if parameter.dim() < 2 else 0.0  # norms
            parameter.copy_(
                around + 0.3 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
            )
        ids = torch.randint(config.vocab_size, (1, tokens), generator=draws)
        expected = stock_logits(config, dict(decoder.named_parameters()), ids)
        return float((decoder(ids) - expected).abs().max() / expected.abs().max())


def _source_sha256(decoder: Decoder) -> str:
    """Hash the source of all modules that define a part of `decoder`, comments and layout left
    out."""
    modules = {type(part).__module__ for part in decoder.modules()}
    digest = hashlib.sha256()
    for name in sorted(name for name in modules if name.partition(".")[0] != "torch"):
        for token in tokenize.generate_tokens(io.StringIO(_source(name)).readline):
            if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE):
                digest.update(token.string.encode() + b"\0")
    return digest.hexdigest()


def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        raise ValueError(
            f"the decoder has a part from {module}, whose source cannot be read: define it in a file"
        ) from None
