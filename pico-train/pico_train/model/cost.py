"""The cost of a decoder, counted on the module itself: parameters, arithmetic, memory."""

from __future__ import annotations

import torch

from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.model.hf import EMBEDDING

_COMPONENTS = {
    "model.embed_tokens.": "embedding",
    ".self_attn.": "attention",
    ".mlp.": "mlp",
    "lm_head.": "head",
}
"""Part of a parameter's name -> component; norms are known by the name of their module."""


def count_parameters(config: DecoderConfig) -> dict[str, int]:
    """Count the parameters by component, and all of them as `total`; tied embeddings count once.

    The key `other` exists if some parameters belong to no component of a Llama.
    """
    counts = dict.fromkeys(("total", "embedding", "attention", "mlp", "norms", "head"), 0)
    for name, parameter in on_meta(config).named_parameters():
        component = _component(name)
        counts[component] = counts.get(component, 0) + parameter.numel()
        counts["total"] += parameter.numel()
    return counts


def _component(name: str) -> str:
    module = name.split(".")[-2] if "." in name else name
    if "norm" in module:
        return "norms"
    return next((component for part, component in _COMPONENTS.items() if part in name), "other")


def on_meta(config: DecoderConfig) -> Decoder:
    """Build the decoder on the meta device: it has shapes, and no memory for its weights."""
    with torch.device("meta"):
        return Decoder(config)


def matmul_parameters(config: DecoderConfig) -> int:
    """Count the parameters that every token is multiplied with.

    They are all matrices except the embedding, which is only looked up.
    """
    # Duplicates included: a tied head multiplies, although it is the embedding's weight.
    parameters = on_meta(config).named_parameters(remove_duplicate=False)
    return sum(p.numel() for name, p in parameters if p.dim() > 1 and name != EMBEDDING)


def flops_per_token(config: DecoderConfig, seq_len: int) -> int:
    """Count the floating-point operations of one training step for each token: 6 P + 12 L D T.

    P is the number of parameters that multiply (2 P forward, 4 P backward). The second term is
    attention's scores and mixing over T positions, forward and backward. By convention the causal
    half is not taken off (Chowdhery et al. 2022, appendix B).
    """
    attention = 12 * config.num_hidden_layers * config.hidden_size * seq_len
    return 6 * matmul_parameters(config) + attention


def activation_bytes(config: DecoderConfig, tokens: int, bf16: bool) -> int:
    """Count the bytes that the layers keep for the backward pass of `tokens` tokens.

    The layers recompute norms and activations (model/recompute.py); they are neither compiled nor
    checkpointed. Counted tensor by tensor, for each token and layer: 32 D + 8 F bytes in float32,
    34 D + 4 F under bfloat16 autocast (whose residual stream, norms' outputs and rotation stay
    float32), and 8 + 4 H for the statistics of norms and attention. Autocast also keeps bfloat16
    copies of the multiplied weights. The embedding and the loss, a few D a token, are left out.
    """
    width, inner = config.hidden_size, config.intermediate_size
    statistics = 8 + 4 * config.num_attention_heads
    activations = 34 * width + 4 * inner if bf16 else 32 * width + 8 * inner
    weight_copies = 2 * matmul_parameters(config) if bf16 else 0
    return tokens * config.num_hidden_layers * (activations + statistics) + weight_copies
