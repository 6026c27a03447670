"""What a decoder costs, from its geometry alone: parameters, arithmetic, memory."""

from __future__ import annotations

from pico_train.model.decoder import DecoderConfig


def count_parameters(config: DecoderConfig) -> dict[str, int]:
    """Parameters by component, and in `total`; tied embeddings count once."""
    width, layers = config.hidden_size, config.num_hidden_layers
    kv_width = config.num_key_value_heads * config.head_dim
    embedding = config.vocab_size * width
    counts = {
        "embedding": embedding,
        "attention": layers * (2 * width * width + 2 * width * kv_width),
        "mlp": layers * 3 * width * config.intermediate_size,
        "norms": (2 * layers + 1) * width,
        "head": 0 if config.tie_word_embeddings else embedding,
    }
    return {"total": sum(counts.values()), **counts}


def matmul_parameters(config: DecoderConfig) -> int:
    """Parameters that every token is multiplied with: all but norms and the embedding's look-up."""
    counts = count_parameters(config)
    return counts["attention"] + counts["mlp"] + config.vocab_size * config.hidden_size


def flops_per_token(config: DecoderConfig, seq_len: int) -> int:
    """Floating-point operations of one training step, a token: 6 P + 12 L D T (Chowdhery et al. 2022, appendix B).

    P are the parameters that multiply; the second term is attention's scores and mixing over T positions, forward
    and backward, the causal half not taken off, as is customary.
    """
    return 6 * matmul_parameters(config) + 12 * config.num_hidden_layers * config.hidden_size * seq_len


def activation_bytes(config: DecoderConfig, tokens: int, bf16: bool) -> int:
    """Bytes that the layers keep for the backward pass of `tokens` tokens, without compilation or checkpointing.

    Counted tensor by tensor, a token and layer: 32 D + 8 F bytes in float32, 34 D + 4 F under bfloat16 autocast (whose
    residual stream, norms' products and rotation stay float32), and 8 + 4 H of norms and attention; as model/lean.py
    has it. Under autocast the bfloat16 copies of the multiplied weights come on top. The embedding and the loss, a few
    D a token, are left out.
    """
    width, inner = config.hidden_size, config.intermediate_size
    a_token = (34 * width + 4 * inner if bf16 else 32 * width + 8 * inner) + 8 + 4 * config.num_attention_heads
    return tokens * config.num_hidden_layers * a_token + (2 * matmul_parameters(config) if bf16 else 0)
