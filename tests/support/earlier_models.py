"""The earlier decoder, written anew from its definition, and checkpoints in its layout; a converted file to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from pico_train.legacy.config import convert_config
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
LAYERS, WIDTH, INNER, HEADS, GROUPS, VOCABULARY = 2, 24, 40, 6, 2, 50
HEAD_WIDTH = WIDTH // HEADS
CONFIG = {
    "model_type": "pico_decoder",
    "auto_map": {"AutoConfig": "pico_decoder.PicoDecoderHFConfig"},
    "d_model": WIDTH,
    "n_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "batch_size": 8,
    "max_seq_len": 32,
    "attention_n_heads": HEADS,
    "attention_n_kv_heads": GROUPS,
    "activation_hidden_dim": INNER,
    "norm_eps": 1e-5,
    "position_emb_theta": 500.0,
}
CLOSE = 1e-5
"""float32 against float64 over two layers, with logits of size 1 to 5: rounding is some 1e-6."""


def shapes() -> dict[str, tuple[int, ...]]:
    layer = {
        "attention.q_proj": (WIDTH, WIDTH),
        "attention.k_proj": (GROUPS * HEAD_WIDTH, WIDTH),
        "attention.v_proj": (GROUPS * HEAD_WIDTH, WIDTH),
        "attention.o_proj": (WIDTH, WIDTH),
        "swiglu.w_0": (INNER, WIDTH),
        "swiglu.w_1": (INNER, WIDTH),
        "swiglu.w_2": (WIDTH, INNER),
        "attention_norm": (WIDTH,),
        "swiglu_norm": (WIDTH,),
    }
    outside = {"embedding_proj": (VOCABULARY, WIDTH), "output_norm": (WIDTH,), "de_embedding_proj": (VOCABULARY, WIDTH)}
    return {**{f"layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}, **outside}


def drawn() -> Tensors:
    """An earlier decoder's tensors with weights large enough for attention to depend on position."""
    generator = torch.Generator().manual_seed(3)
    return {f"{name}.weight": torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes().items()}


def factors(tensors: Tensors, *, scaled: bool) -> Tensors:
    """Low-rank factors of rank 3 for every linear layer within the layers."""
    generator = torch.Generator().manual_seed(4)
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith("layers.") and "norm" not in name:
            module = name.removesuffix(".weight")
            found[f"{module}.A_lora.weight"] = torch.randn(3, tensor.shape[1], generator=generator) * 0.2
            found[f"{module}.B_lora.weight"] = torch.randn(tensor.shape[0], 3, generator=generator) * 0.2
            if scaled:
                found[f"{module}.s"] = torch.randn(1, generator=generator)
    return found


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + CONFIG["norm_eps"]).sqrt() * weight


def turned(x: torch.Tensor) -> torch.Tensor:
    """Neighbouring pairs of x (T, d) as complex numbers, turned by position * theta^(-2i/d)."""
    places, width = x.shape
    speed = CONFIG["position_emb_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(places, dtype=torch.float64)[:, None] * speed
    pairs = torch.complex(x[:, 0::2], x[:, 1::2]) * torch.complex(angle.cos(), angle.sin())
    return torch.stack((pairs.real, pairs.imag), dim=-1).reshape(places, width)


def earlier_logits(tensors: Tensors, ids: torch.Tensor, scale: Callable[[str], float] | None = None) -> torch.Tensor:
    """Logits (T, V) of one sequence in float64, head by head; `scale` is the factor on B A of a low-rank layer."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}

    def linear(module: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ weights[f"{module}.weight"].T
        if scale is None or f"{module}.A_lora.weight" not in weights:
            return y
        return y + scale(module) * (x @ weights[f"{module}.A_lora.weight"].T @ weights[f"{module}.B_lora.weight"].T)

    x = weights["embedding_proj.weight"][ids]
    mask = torch.full((len(ids), len(ids)), -math.inf, dtype=torch.float64).triu(1)
    for layer in range(LAYERS):
        here = f"layers.{layer}"
        h = norm(x, weights[f"{here}.attention_norm.weight"])
        q, k, v = (linear(f"{here}.attention.{p}_proj", h).split(HEAD_WIDTH, dim=-1) for p in "qkv")
        heads = []
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            scores = turned(q[head]) @ turned(k[group]).T / math.sqrt(HEAD_WIDTH) + mask
            heads.append(scores.softmax(-1) @ v[group])
        x = x + linear(f"{here}.attention.o_proj", torch.cat(heads, dim=-1))
        h = norm(x, weights[f"{here}.swiglu_norm.weight"])
        gate = linear(f"{here}.swiglu.w_0", h)
        x = x + linear(f"{here}.swiglu.w_2", gate * gate.sigmoid() * linear(f"{here}.swiglu.w_1", h))
    return norm(x, weights["output_norm.weight"]) @ weights["de_embedding_proj.weight"].T


def saved(place: Path, tensors: Tensors, **changes: Any) -> Path:
    """A checkpoint of `tensors` in the new directory `place`, with config.json so changed."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file({f"pico_decoder.{name}": tensor for name, tensor in tensors.items()}, place / "model.safetensors")
    return place


def converted(path: Path) -> tuple[dict[str, Any], str]:
    """(our settings as a mapping, all remarks in one text) of a configuration."""
    text, remarks = convert_config(path)
    return yaml.safe_load(text), "\n".join(remarks)
