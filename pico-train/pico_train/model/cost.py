"""What a decoder costs, counted on the module itself: parameters, arithmetic, memory."""

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
"""Part of a parameter's name -> component; norms are told by the name of their module."""


def count_parameters(config: DecoderConfig) -> dict[str, int]:
    """Count the parameters of the decoder itself by component, and in `total`; tied embeddings
    count once.

    `other` is there if the decoder has parameters that belong to none of the components of a Llama.
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
    """Build the decoder of shapes alone, without memory for its weights."""
    with torch.device("meta"):
        return Decoder(config)


def matmul_parameters(config: DecoderConfig) -> int:
    """Count the parameters that every token is multiplied with: all matrices but the embedding's
    look-up."""
    matrices = on_meta(config).named_parameters(
        remove_duplicate=False
    )  # a tied head multiplies as well
    return sum(p.numel() for name, p in matrices if p.dim() > 1 and name != EMBEDDING)


def flops_per_token(config: DecoderConfig, seq_len: int) -> int:
    """Floating-point operations of one training step, a token: 6 P + 12 L D T (Chowdhery et al.
    2022, appendix B).

    P are the parameters that multiply; the second term is attention's scores and mixing over T
    positions, forward and backward, the causal half not taken off, as is customary.
    """
    return (
        6 * matmul_parameters(config) + 12 * config.num_hidden_layers * config.hidden_size * seq_len
    )


def activation_bytes(config: DecoderConfig, tokens: int, bf16: bool) -> int:
    """Bytes that the layers keep for the backward pass of `tokens` tokens, without compilation or
    checkpointing.

    Counted tensor by tensor, a token and layer: 32 D + 8 F bytes in float32, 34 D + 4 F under
    bfloat16 autocast (whose residual stream, norms' products and rotation stay float32), and 8 + 4
    H of norms and attention; as model/recompute.py has it. Under autocast the bfloat16 copies of
    the multiplied weights come on top. The embedding and the loss, a few D a token, are left out.
    """
    width, inner = config.hidden_size, config.intermediate_size
    a_token = (
        (34 * width + 4 * inner if bf16 else 32 * width + 8 * inner)
        + 8
        + 4 * config.num_attention_heads
    )
    return tokens * config.num_hidden_layers * a_token + (
        2 * matmul_parameters(config) if bf16 else 0
    )
