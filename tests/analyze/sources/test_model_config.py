"""The shape of a model and the heads of each of its layers, by the configurations of many families."""

from __future__ import annotations

from typing import Any

import pytest
from pico_analyze.sources.model_config import Heads, describe, geometry, heads_of

TEXT = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA, VISION = "model.layers.0.self_attn", "vision_tower.vision_model.encoder.layers.0.self_attn"
BART = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "module", "heads"),
    [
        (TEXT, LLAMA, (4, 2)),
        ({"n_head": 4}, "transformer.h.0.attn", (4, 4)),
        ({"num_heads": 4}, "transformer.h.0.attn.attention", (4, 4)),
        ({"n_heads": 4}, "transformer.layer.0.attention", (4, 4)),
        ({"num_attention_heads": 4, "multi_query": True}, "h.0.self_attention", (4, 1)),
        ({"num_attention_heads": 4, "num_kv_heads": 2}, "h.0.self_attention", (4, 2)),
        (
            {"num_attention_heads": 4, "num_kv_heads": 2, "multi_query": True, "new_decoder_architecture": True},
            "transformer.h.0.self_attention",
            (4, 2),
        ),
        ({"n_heads": 4, "attn_config": {"kv_n_heads": 2}}, "transformer.blocks.0.attn", (4, 2)),
        (
            {"num_attention_heads": 4, "multi_query_attention": True, "multi_query_group_num": 2},
            "transformer.encoder.layers.0.self_attention",
            (4, 2),
        ),
        ({"n_heads": 4, "multi_query_attention": True}, "model.transformer.blocks.0", (4, 1)),
        ({"num_query_heads": [4, 8], "num_kv_heads": [1, 2]}, "transformer.layers.0.attn", (4, 1)),
        ({"num_query_heads": [4, 8], "num_kv_heads": [1, 2]}, "transformer.layers.1.attn", (8, 2)),
        ({"num_query_heads": [4, 8], "num_kv_heads": [1, 2]}, "transformer.layers.2.attn", None),
        (BART, "model.encoder.layers.0.self_attn", (2, 2)),
        (BART, "model.decoder.layers.0.encoder_attn", (4, 4)),
        ({"num_heads": 3}, "decoder.block.0.layer.1.EncDecAttention", (3, 3)),
        ({"text_config": TEXT}, "language_model.model.layers.0.self_attn", (4, 2)),
        ({"text_config": TEXT}, LLAMA, (4, 2)),
        ({"llm_config": TEXT}, "language_model.model.layers.0.attention", (4, 2)),
        ({"thinker_config": {"text_config": TEXT}}, LLAMA, (4, 2)),
        ({"text_config": TEXT, "vision_config": {"num_attention_heads": 2}}, VISION, (2, 2)),
        ({"text_config": TEXT, "vision_config": {"num_attention_heads": 2}}, LLAMA, (4, 2)),
        ({"text_config": TEXT}, VISION, None),
        (TEXT | {"vision_config": {"num_heads": 2}}, "visual.blocks.0.attn", (2, 2)),
        (TEXT | {"vision_config": {"num_heads": 2}}, LLAMA, (4, 2)),
        ({"encoder": {"num_attention_heads": 2}, "decoder": TEXT}, "encoder.encoder.layer.0.attention", (2, 2)),
        ({"encoder": {"num_attention_heads": 2}, "decoder": TEXT}, "decoder.model.layers.0.self_attn", (4, 2)),
        ({"num_attention_heads": 0}, LLAMA, None),
        ({"num_attention_heads": True}, LLAMA, None),
        ({"num_attention_heads": [4, "four"]}, LLAMA, None),
        ({}, LLAMA, None),
    ],
)
def test_heads_are_those_of_the_layer(config: dict[str, Any], module: str, heads: tuple[int, int] | None) -> None:
    assert heads_of(geometry(config), module) == (None if heads is None else Heads(*heads))


def test_a_configuration_in_words_names_each_stack_once() -> None:
    config = {"tie_word_embeddings": True, "text_config": TEXT, "vision_config": {"hidden_size": 8, "num_heads": 2}}
    assert describe(geometry(config)) == (
        "hidden_size 16, num_attention_heads 4, num_key_value_heads 2, tie_word_embeddings True; "
        "vision: hidden_size 8, num_attention_heads 2"
    )
