"""Tiny models of many families, saved by transformers, for tests of what is read out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

D, LAYERS, VOCABULARY = 16, 2, 11
_LLAMA = {
    "hidden_size": D,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_HEADS = {"hidden_size": D, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
_GPT = {"n_embd": D, "n_head": 4, "n_layer": LAYERS, "n_positions": 16}
_BART = {
    "d_model": D,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "max_position_embeddings": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_TOWER = {"hidden_size": D, "intermediate_size": 24, "num_hidden_layers": LAYERS}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT | {"multi_query": True},
    "gpt_bigcode:by_head": _GPT | {"multi_query": False},
    "gpt_neox": _HEADS,
    "gpt_neo": {
        "hidden_size": D,
        "num_heads": 4,
        "num_layers": LAYERS,
        "intermediate_size": 24,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 16,
    },
    "gptj": _GPT | {"rotary_dim": 2},
    "codegen": {"n_embd": 32, "n_head": 8, "n_layer": LAYERS, "n_positions": 16, "rotary_dim": 2},
    "bloom": {"hidden_size": D, "n_head": 4, "n_layer": LAYERS},
    "falcon": _HEADS | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon:multi_query": _HEADS | {"multi_query": True, "new_decoder_architecture": False},
    "falcon:by_head": _HEADS | {"multi_query": False, "new_decoder_architecture": False},
    "phi": _HEADS,
    "phi3": _LLAMA | {"pad_token_id": 0},
    "mpt": {"d_model": D, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 16},
    "persimmon": _HEADS | {"qk_layernorm": False},
    "opt": {**_HEADS, "ffn_dim": 24, "word_embed_proj_dim": D, "max_position_embeddings": 16},
    "bert": _HEADS | {"max_position_embeddings": 16},
    "roberta": _HEADS | {"max_position_embeddings": 16},
    "distilbert": {"dim": D, "n_heads": 4, "n_layers": LAYERS, "hidden_dim": 24, "max_position_embeddings": 16},
    "albert": _HEADS | {"embedding_size": 8, "max_position_embeddings": 16},
    "modernbert": _HEADS
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    "mixtral": _LLAMA | {"num_local_experts": 3},
    "qwen2_moe": _LLAMA
    | {"num_experts": 3, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts_per_tok": 2},
    "gpt_oss": _LLAMA | {"head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3": _LLAMA | {"head_dim": 8},
    "olmo2": _LLAMA,
    "gemma": _LLAMA | {"head_dim": 8},
    "t5": {"d_model": D, "num_heads": 2, "d_kv": 4, "num_layers": LAYERS, "d_ff": 24},
    "bart": _BART,
    "whisper": _BART | {"num_mel_bins": 3, "max_source_positions": 4, "max_target_positions": 16},
    "clip": {
        "text_config": _TOWER | {"num_attention_heads": 2, "vocab_size": VOCABULARY},
        "vision_config": _TOWER | {"num_attention_heads": 4, "image_size": 8, "patch_size": 4},
    },
}
"""Family, with a variant behind a colon -> its configuration."""


def build(family: str, **changes: Any) -> Any:
    """A random model of a family, without dropout and with every bias 0, so that projections are matrices alone."""
    given = {"vocab_size": VOCABULARY} | FAMILIES[family] | changes
    if "text_config" in given:
        del given["vocab_size"]
    config = transformers.AutoConfig.for_model(family.partition(":")[0], **given)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        vanishes = name.endswith("bias") or "relative_attention_bias" in name
        parameter.data = torch.zeros_like(parameter) if vanishes else _random(parameter, generator)
    return model


def _random(parameter: torch.nn.Parameter, generator: torch.Generator) -> torch.Tensor:
    scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
    return scale * torch.randn(parameter.shape, generator=generator)


def saved(family: str, folder: Path, **changes: Any) -> Any:
    """The model of `build`, saved to `folder` as transformers does."""
    model = build(family, **changes)
    model.save_pretrained(folder)
    return model
