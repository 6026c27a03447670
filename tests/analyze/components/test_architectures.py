"""The circuits of each family of models against the forward pass of transformers' own model.

Head h's OV circuit is what the head adds to the residual stream: its slice of the output projection's input, taken
through that projection, equals the sum over positions j of A_ij x_j @ OV_h^T, with A the pattern of the model's own
forward pass. Its QK circuit gives the scores before the softmax where no rotation or bias of positions lies between.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pico_analyze import open_source
from pico_analyze.components import MeasuredUnit, plan_units
from pico_analyze.components.circuits import OV
from pico_analyze.components.projections import attention_at
from pico_analyze.sources import Source
from pico_contract import codec
from torch import nn

from ...support.model_families import FAMILIES, VOCABULARY, saved

WITH_NORMS = ["qwen3", "olmo2"]
"""Families that normalise queries and keys: their scores are not those of QK circuits."""
SHIFTED = "gpt_oss"
"""Its scores pass through the softmax less their largest, beside a sink."""


class Seen(NamedTuple):
    """What was observed of one attention in a forward pass: (6, T, width) where not said otherwise."""

    queries_from: torch.Tensor
    values_from: torch.Tensor
    heads: torch.Tensor  # the input of the output projection, all heads side by side
    scores: torch.Tensor  # (6, H, T, T): the input of the softmax
    pattern: torch.Tensor  # (6, H, T, T)


def units(source: Source, circuit: str) -> list[MeasuredUnit]:
    return plan_units([circuit], "weights", source.modules(1, "weights"), source.model)


def inputs(model: Any, tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(3, VOCABULARY, (6, tokens), generator=generator)
    if model.config.model_type == "whisper":
        return {"input_features": torch.randn(6, 3, 8, generator=generator), "decoder_input_ids": ids}
    given = {"input_ids": ids}
    if model.config.model_type == "clip":
        given["pixel_values"] = torch.randn(6, 3, 8, 8, generator=generator)
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids
    return given


def part(model: nn.Module, name: str) -> nn.Module:
    """By its stored name, which has the prefix of the model with a head in front."""
    return model.get_submodule(name if name.split(".")[0] in dict(model.named_children()) else name.partition(".")[2])


def forward(model: Any, source: Source, modules: list[str], tokens: int, patch: pytest.MonkeyPatch) -> dict[str, Seen]:
    """The model's own forward pass of 6 sequences, observed at each of `modules`, which own an attention."""
    inputs_of: dict[str, torch.Tensor] = {}
    softmax: list[tuple[torch.Tensor, torch.Tensor]] = []
    seen: dict[str, Seen] = {}

    def keep_input(name: str) -> Any:
        return lambda _, given: inputs_of.update({name: given[0].double()})

    def keep_all(module: str, query: str, value: str) -> Any:
        def keep(_: Any, given: Any) -> None:
            seen[module] = Seen(inputs_of[query], inputs_of[value], given[0].double(), *softmax[-1])

        return keep

    def kept_softmax(given: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        found = own_softmax(given, *arguments, **options)
        if given.dim() == 4:
            softmax.append((given.double(), found.double()))
        return found

    own_softmax = nn.functional.softmax
    patch.setattr(nn.functional, "softmax", kept_softmax)
    for module in modules:
        names = {role: f"{module}.{name}" for role, name in attention_at(source, module, 1, OV).layout.names.items()}
        for role in ("query", "value"):
            part(model, names[role]).register_forward_pre_hook(keep_input(names[role]))
        output = part(model, names["output"])
        output.register_forward_pre_hook(keep_all(module, names["query"], names["value"]))
    with torch.no_grad():
        model(**inputs(model, tokens))
    patch.undo()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_ov_circuit_is_what_a_head_adds_to_the_residual_stream(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(family, tmp_path / "m" / "step1")
    source = open_source(tmp_path / "m")
    found = {unit.module: unit for unit in units(source, "ov_circuit")}
    seen = forward(model, source, list(found), 5, monkeypatch)
    assert list(seen)
    assert set(seen) == set(found)
    for module, (_, x, heads, _, pattern) in seen.items():
        output = attention_at(source, module, 1, OV).rows("output", "weights").double()  # (D, H * hd)
        count = len(found[module].keys)
        assert pattern.shape[1] == count
        for head, circuit in enumerate(found[module].load(source, 1, "weights", None)):
            alone = torch.zeros_like(heads).unflatten(-1, (count, -1))
            alone[:, :, head] = heads.unflatten(-1, (count, -1))[:, :, head]
            written = alone.flatten(2) @ output.T
            weighted = pattern[:, head, :, : x.shape[1]] @ x @ circuit.dense().T
            torch.testing.assert_close(weighted, written, rtol=1e-4, atol=1e-5)
            assert written.abs().max() > 1e-3


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in (*WITH_NORMS, SHIFTED)])
def test_qk_circuit_gives_the_scores_at_distance_0(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to one positive factor a layer, 1 / sqrt(hd) in most families."""
    model = saved(family, tmp_path / "m" / "step1")
    source = open_source(tmp_path / "m")
    found = {unit.module: unit for unit in units(source, "qk_circuit")}
    for module, (x, y, _, scores, _) in forward(model, source, list(found), 1, monkeypatch).items():
        products = torch.stack([circuit.dense() for circuit in found[module].load(source, 1, "weights", None)])
        expected = torch.einsum("bid,hde,bje->bhij", x, products, y)
        factor = (scores * expected).sum() / expected.square().sum()
        torch.testing.assert_close(scores, factor * expected, rtol=1e-4, atol=1e-4)
        assert factor > 0.1


HEADS, GROUPS, WIDTH = 4, 2, 3


def by_group(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The queries of a group of heads, its key, its value; then those of the next group."""
    queries, keys, values = query.chunk(GROUPS), key.chunk(GROUPS), value.chunk(GROUPS)
    return torch.cat([torch.cat(group) for group in zip(queries, keys, values, strict=True)])


def stacked(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("config", "owner", "fused", "output", "fuse"),
    [
        ({"model_type": "hf_olmo", "n_kv_heads": 2}, "model.transformer.blocks.0", "att_proj", "attn_out", stacked),
        ({"model_type": "openelm", "num_kv_heads": 2}, "transformer.layers.0.attn", "qkv_proj", "out_proj", stacked),
        ({"model_type": "dbrx", "attn_config": {"kv_n_heads": 2}}, "h.0.attn", "Wqkv", "out_proj", stacked),
        ({"model_type": "internlm2", "num_key_value_heads": 2}, "model.layers.0.attention", "wqkv", "wo", by_group),
        (
            {"model_type": "chatglm", "multi_query_attention": True, "multi_query_group_num": 2},
            *("transformer.encoder.layers.0.self_attention", "query_key_value", "dense", stacked),
        ),
        ({"model_type": "RefinedWeb", "n_head_kv": 2}, "h.0.self_attention", "query_key_value", "dense", by_group),
    ],
)
def test_fused_projections_of_families_outside_transformers_are_divided_as_they_are_fused(
    config: dict[str, Any], owner: str, fused: str, output: str, fuse: Any, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(rows * WIDTH, 10, generator=generator) for rows in (HEADS, GROUPS, GROUPS))
    tensors = {f"{owner}.{fused}.weight": fuse(query, key, value), f"{owner}.{output}.weight": query.T.contiguous()}
    folder = tmp_path / "m" / "step1"
    folder.mkdir(parents=True)
    codec.save_tensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": HEADS} | config))
    attention = attention_at(open_source(tmp_path / "m"), owner, 1, OV)
    for role, expected in (("query", query), ("key", key), ("value", value), ("output", query.T)):
        assert torch.equal(attention.rows(role, "weights"), expected), role  # type: ignore[arg-type]
