"""Names of modules: canonical, parsed, matched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_contract import names
from pico_contract.errors import UserError
from pico_train.model.decoder import Decoder, DecoderConfig


def module_names() -> list[str]:
    with torch.device("meta"):
        return [name for name, _ in Decoder(DecoderConfig(num_hidden_layers=12)).named_modules()]


MODULES = module_names()
PROJECTIONS = [name for name in MODULES if name.endswith("_proj")]
WRAPPERS = ["_orig_mod", "module", "_forward_module", "pico_decoder"]
EARLIER = {
    "layers.3.attention.q_proj": "model.layers.3.self_attn.q_proj",
    "layers.3.attention.k_proj": "model.layers.3.self_attn.k_proj",
    "layers.3.attention.v_proj": "model.layers.3.self_attn.v_proj",
    "layers.3.attention.o_proj": "model.layers.3.self_attn.o_proj",
    "layers.10.swiglu.w_0": "model.layers.10.mlp.gate_proj",
    "layers.10.swiglu.w_1": "model.layers.10.mlp.up_proj",
    "layers.10.swiglu.w_2": "model.layers.10.mlp.down_proj",
    "layers.0.attention_norm": "model.layers.0.input_layernorm",
    "layers.0.swiglu_norm": "model.layers.0.post_attention_layernorm",
    "embedding_proj": "model.embed_tokens",
    "de_embedding_proj": "lm_head",
    "output_norm": "model.norm",
}

parts = st.sampled_from(
    [
        *WRAPPERS,
        *("model", "layers", "0", "11", "self_attn", "attention", "mlp", "swiglu", "q_proj", "o_proj", "w_0", "w_2"),
        *("attention_norm", "swiglu_norm", "embedding_proj", "de_embedding_proj", "output_norm", "norm", "lm_head"),
        *("weight", "lora_A", "*", "?_proj", "[qk]_proj", ""),
    ]
)
dotted = st.lists(parts, min_size=1, max_size=7).map(".".join)


@settings(deadline=None)
@given(dotted | st.text(alphabet="abc_.*?[]0", max_size=30))
def test_canonical_is_idempotent(name: str) -> None:
    once = names.canonical(name)
    assert names.canonical(once) == once


@settings(deadline=None)
@given(st.sampled_from(MODULES), st.lists(st.sampled_from(WRAPPERS), max_size=4))
def test_a_name_in_use_is_canonical_and_wrappers_fall_off(name: str, wrappers: list[str]) -> None:
    assert names.canonical(name) == name
    assert names.canonical(".".join([*wrappers, name])) == name


@pytest.mark.parametrize("name", [name for name in MODULES if "layers.7." in name])
def test_a_compiled_layer_within_the_model_loses_its_wrapper(name: str) -> None:
    assert names.canonical(name.replace("layers.7.", "layers.7._orig_mod.")) == name


@pytest.mark.parametrize(("earlier", "ours"), EARLIER.items())
@pytest.mark.parametrize("wrapper", ["", "_forward_module.", "module._orig_mod.", "pico_decoder."])
@pytest.mark.parametrize("ending", ["", ".weight"])
def test_names_of_earlier_code_are_aliases(earlier: str, ours: str, wrapper: str, ending: str) -> None:
    assert ours in MODULES
    assert names.canonical(wrapper + earlier + ending) == ours + ending
    assert names.match(earlier, MODULES) == [ours]


@pytest.mark.parametrize(
    ("pattern", "same_as"),
    [
        ("attention.*", "self_attn.*"),
        ("attention.?_proj", "self_attn.[qkvo]_proj"),
        ("layers.*.attention.v_proj", "model.layers.*.self_attn.v_proj"),
        ("layers.1?.swiglu.*", "model.layers.1?.mlp.*"),
        ("swiglu.w_2", "mlp.down_proj"),
        ("layers.*.attention_norm", "*input_layernorm"),
    ],
)
def test_patterns_in_earlier_names_are_aliases(pattern: str, same_as: str) -> None:
    chosen = names.match(pattern, MODULES)
    assert chosen == names.match(same_as, MODULES)
    assert len(chosen) > 1


@pytest.mark.parametrize("name", MODULES)
def test_every_module_matches_itself_and_nothing_else(name: str) -> None:
    assert names.match(name, MODULES) == [name]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("*_proj", 84),
        ("v_proj", 12),
        ("self_attn.v_proj", 12),
        ("model.layers.*.self_attn.v_proj", 12),
        ("layers.1.mlp.*_proj", 3),
        ("layers.1[01].mlp.down_proj", 2),
        ("self_attn.[qk]_proj", 24),
        ("*norm", 25),
        ("lm_head", 1),
    ],
)
def test_a_pattern_is_compared_with_whole_names_and_their_endings(pattern: str, count: int) -> None:
    assert len(names.match(pattern, MODULES)) == count


def test_several_patterns_give_each_module_once_in_the_models_order() -> None:
    chosen = names.match(["*.5.mlp.*_proj", "layers.5.*_proj", "layers.2.self_attn.q_proj"], MODULES)
    assert chosen == [name for name in PROJECTIONS if ".5." in name or name == "model.layers.2.self_attn.q_proj"]


def test_stored_names_may_be_earlier_ones_and_are_given_back_as_they_are() -> None:
    stored = ["layers.0.swiglu.w_2", "layers.1.swiglu.w_2", "output_norm"]
    assert names.match("mlp.down_proj", stored) == stored[:2]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("self_attn.vproj", "self_attn.v_proj"),
        ("attention.q_project", "q_proj"),
        ("model.layers.*.mlp.dwn_proj", "mlp.down_proj"),
        ("lmhead", "lm_head"),
        ("layers.12.mlp.up_proj", "layers.2.mlp.up_proj"),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(pattern: str, near: str) -> None:
    """C9.2: it is an error."""
    with pytest.raises(UserError) as caught:
        names.match(["*_proj", pattern], MODULES)
    sentence = str(caught.value)
    assert sentence.startswith(f'the pattern "{pattern}" matches no module; the nearest names are: ')
    assert near in sentence.split(": ")[1]


def test_where_nothing_is_near_some_names_are_shown() -> None:
    with pytest.raises(UserError, match="the nearest names are: a, b, c"):
        names.match("zzzzzz", ["c", "b", "a", "d"])
    with pytest.raises(UserError, match="there are none"):
        names.match("v_proj", [])


@pytest.mark.parametrize(
    ("name", "layer", "kind", "component"),
    [
        ("model.layers.11.self_attn.q_proj", 11, "attention", "self_attn.q_proj"),
        ("model.layers.0.self_attn", 0, "attention", "self_attn"),
        ("model.layers.2.mlp.down_proj.weight", 2, "mlp", "mlp.down_proj.weight"),
        ("model.layers.2.input_layernorm", 2, "norm", "input_layernorm"),
        ("model.layers.2.post_attention_layernorm.weight", 2, "norm", "post_attention_layernorm.weight"),
        ("model.norm.weight", None, "norm", "model.norm.weight"),
        ("model.embed_tokens", None, "embedding", "model.embed_tokens"),
        ("lm_head", None, "head", "lm_head"),
        ("model.layers.0", None, "other", "model.layers.0"),
        ("classifier.weight", None, "other", "classifier.weight"),
        ("_orig_mod.layers.4.swiglu.w_1", 4, "mlp", "mlp.up_proj"),
        ("gpt_neox.layers.3.attention.query_key_value", 3, "other", "attention.query_key_value"),
        ("transformer.h.10.mlp.c_fc.weight", 10, "mlp", "mlp.c_fc.weight"),
        ("bert.encoder.layer.2.attention.self.query", 2, "other", "attention.self.query"),
        ("encoder.block.2.layer.0.SelfAttention.q", 2, "other", "layer.0.SelfAttention.q"),
        ("decoder.block.1.layer.2.DenseReluDense.wi", 1, "other", "layer.2.DenseReluDense.wi"),
        ("h.3.attn.c_attn", 3, "other", "attn.c_attn"),
        ("model.transformer.blocks.5.att_proj", 5, "other", "att_proj"),
        ("visual.transformer.resblocks.7.attn.in_proj_weight", 7, "other", "attn.in_proj_weight"),
        ("encoder.albert_layer_groups.0.albert_layers.0.ffn", 0, "other", "albert_layers.0.ffn"),
        ("model.layers.4.mlp.experts.7.down_proj", 4, "mlp", "mlp.experts.7.down_proj"),
        ("model.layers.4.block_sparse_moe.experts.3.w1", 4, "other", "block_sparse_moe.experts.3.w1"),
        ("vision_tower.vision_model.encoder.layers.9.mlp.fc1", 9, "mlp", "mlp.fc1"),
        ("classifier.0.dense", None, "other", "classifier.0.dense"),
    ],
)
def test_a_name_says_layer_kind_and_component(name: str, layer: int | None, kind: str, component: str) -> None:
    parsed = names.parse(name)
    assert (parsed.layer, parsed.kind, parsed.component) == (layer, kind, component)
    assert parsed.name == names.canonical(name)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.attention.q_proj",  # GPT-Neo
        "encoder.layers.0.attention.q_proj",  # wav2vec 2
        "model.layers.0.attention.q_proj",
        "transformer.layer.0.attention_norm",
        "decoder.swiglu.w_2",
    ],
)
def test_names_of_other_families_are_kept(name: str) -> None:
    """C9.1: a shared part is not an alias."""
    assert names.canonical(name) == name
    assert names.fits(name, name)
    assert names.fits(".".join(name.split(".")[-2:]), name)


@pytest.mark.parametrize(
    ("stacks", "prefixes"),
    [
        (["model.layers"], {}),
        (["encoder.block", "decoder.block"], {"encoder.block": "encoder", "decoder.block": "decoder"}),
        (
            ["model.encoder.layers", "model.decoder.layers"],
            {"model.encoder.layers": "encoder", "model.decoder.layers": "decoder"},
        ),
        (
            ["language_model.model.layers", "vision_tower.vision_model.encoder.layers"],
            {
                "language_model.model.layers": "language_model",
                "vision_tower.vision_model.encoder.layers": "vision_tower",
            },
        ),
        (
            ["a.model.layers", "v.transformer.layers", "v.global_transformer.layers"],
            {
                "a.model.layers": "a",
                "v.transformer.layers": "v.transformer",
                "v.global_transformer.layers": "v.global_transformer",
            },
        ),
        (["model.layers", "model.mtp_layers"], {"model.layers": "layers", "model.mtp_layers": "mtp_layers"}),
        (
            ["e.stages.0.layers", "e.stages.1.layers"],
            {"e.stages.0.layers": "stages.0", "e.stages.1.layers": "stages.1"},
        ),
    ],
)
def test_stacks_of_layers_are_told_apart_by_what_no_other_begins_with(
    stacks: list[str], prefixes: dict[str, str]
) -> None:
    modules = [f"{stack}.{layer}.self_attn.q_proj" for stack in stacks for layer in range(2)]
    assert names.stack_prefixes([*modules, "lm_head", "other.layers.0.mixer.in_proj"]) == prefixes


LOW_RANK = {
    names.lora_A: "lora_A.weight",
    names.lora_B: "lora_B.weight",
    names.lora_scale: "lora_scale",
    names.lora_gain: "lora_gain",
    names.base: "base.weight",
    names.merged_A: "merged_A.weight",
    names.merged_B: "merged_B.weight",
}


@pytest.mark.parametrize(("name_of", "ending"), LOW_RANK.items(), ids=LOW_RANK.values())
def test_tensors_of_low_rank_modules_are_named_after_the_module_and_tell_it(
    name_of: Callable[[str], str], ending: str
) -> None:
    for module in PROJECTIONS:
        assert name_of(module) == f"{module}.{ending}"
        assert names.low_rank_part(name_of(module)) == (module, ending.removesuffix(".weight"))


def test_no_other_tensor_is_taken_for_one_of_a_low_rank_module() -> None:
    others = [*MODULES, *(f"{name}.weight" for name in MODULES), "base.weight", "x.lora_C.weight"]
    assert [name for name in others if names.low_rank_part(name)] == []
