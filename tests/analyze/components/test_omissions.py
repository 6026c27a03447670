"""What is measured by default of models of other families, and what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze import measure, open_source
from pico_analyze.commands import holdings, run_analysis
from pico_analyze.components.omissions import OmittedWarning
from pico_analyze.config import AnalysisConfig
from pico_analyze.engine.damage import DamagedWarning
from pico_contract import codec
from pico_contract.errors import UserError

from ...support.model_families import FAMILIES, saved

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

WHOLE = {"num_attention_heads": 2, "hidden_size": 8}
NEOX = "gpt_neox.layers.0.attention"
BLOOM = "h.0.self_attention"


def series(root: Path, shapes: Mapping[str, tuple[int, ...]], *configs: dict[str, Any]) -> Path:
    """A step for each configuration, with random tensors of these shapes."""
    for step, config in enumerate(configs):
        folder = root / "m" / f"step{step}"
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(step)
        tensors = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        codec.save_tensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(config))
    return root / "m"


def said(path: Path, out: Path, **options: Any) -> list[str]:
    """The lines that an analysis says, without progress."""
    config = {"run": path, "out": out, "metrics": ["per"], "figures": {"metrics": []}} | options
    lines: list[str] = []
    run_analysis(AnalysisConfig.model_validate(config), "the test", lines.append)
    return [line for line in lines if not line.startswith("measured ")]


def projections(*names: str, owner: str = "model.layers.0.self_attn") -> dict[str, tuple[int, ...]]:
    return {f"{owner}.{name}": (8, 8) for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_by_default_every_matrix_is_measured_or_named(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path / "m" / "step1")
    source = open_source(tmp_path / "m")
    lines = said(tmp_path / "m", tmp_path)
    table = measure(source, ["frobenius_norm"])
    plain = table[~table["component"].str.endswith("ov_circuit")]
    assert not table.duplicated(["component", "layer", "head"]).any()
    for name in set(source.modules(1, "weights")) - set(plain["module"]):
        assert any(name.split(".")[-1] in line for line in lines), name
    for name, shape in source.tensors(1).items():  # type: ignore[attr-defined]
        if len(shape) > 2 and "experts" in name:
            assert any(f"experts.{name.split('.')[-1]} {shape}" in line for line in lines), name


@pytest.mark.parametrize(
    ("shapes", "config", "sentence"),
    [
        (
            {f"{BLOOM}.query_key_value": (24, 8), f"{BLOOM}.dense": (8, 8)},
            WHOLE | {"model_type": "unheard-of"},
            "query, key and value are one matrix (self_attention.query_key_value)",
        ),
        (projections("q_proj", "k_proj", "v_proj", "o_proj"), {"hidden_size": 8}, "does not give the number of heads"),
        (projections("q_proj", "k_proj", "v_proj", "out"), WHOLE, "the layout of self_attn.v_proj is not known"),
        (projections("q_b_proj", "kv_b_proj", "o_proj"), WHOLE, "the layout of self_attn.kv_b_proj is not known"),
        (projections("in_proj", "x_proj", owner="backbone.layers.0.mixer"), {}, "no module has the projections"),
        (projections("c_attn", owner="h.0.attn"), WHOLE, "the layout of attn.c_attn is not known"),
    ],
)
def test_circuits_that_cannot_be_had_are_named_with_the_reason(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = series(tmp_path, shapes, config)
    (line,) = [line for line in said(path, tmp_path) if "ov_circuit" in line]
    assert line.startswith("note: ov_circuit is left out: ")
    assert sentence in line
    (inspected,) = [line for line in holdings(path) if line.startswith("ov_circuit")]
    assert inspected == line.removeprefix("note: ")
    with pytest.raises(UserError) as error:
        measure(open_source(path), ["per"], ["ov_circuit"])
    assert sentence in str(error.value)
    some = next(iter(shapes))
    with pytest.warns(OmittedWarning, match="ov_circuit is left out"):
        table = measure(open_source(path), ["per"], [some, "ov_circuit"])
    assert set(table["module"]) == {some}


def test_a_known_fused_matrix_has_circuits_by_the_name_of_its_family(tmp_path: Path) -> None:
    path = series(tmp_path, {f"{NEOX}.query_key_value": (24, 8), f"{NEOX}.dense": (8, 8)}, WHOLE)
    assert not [line for line in said(path, tmp_path) if "circuit" in line]
    assert "circuits of weights: ov_circuit, qk_circuit" in holdings(path)


def test_a_model_of_its_own_kind_everywhere_says_nothing(tmp_path: Path) -> None:
    path = series(tmp_path, projections("q_proj", "k_proj", "v_proj", "o_proj"), WHOLE)
    assert said(path, tmp_path) == []


def test_a_circuit_of_one_stack_is_chosen_by_its_name_in_the_table(tmp_path: Path) -> None:
    saved("bart", tmp_path / "m" / "step1")
    name = "decoder.encoder_attn.ov_circuit"
    table = measure(open_source(tmp_path / "m"), ["per"], [name])
    assert set(table["component"]) == {name}
    assert set(table["head"]) == set(range(4))
    with pytest.raises(UserError, match=r'"middle\.self_attn" matches no module'):
        measure(open_source(tmp_path / "m"), ["per"], ["middle.self_attn.ov_circuit"])


@pytest.mark.parametrize("circuit", ["ov_circuit", "qk_circuit"])
@pytest.mark.parametrize("changed", [{"num_attention_heads": 4}, {"num_attention_heads": 1}])
def test_a_step_with_other_heads_than_the_last_has_no_circuits(
    changed: dict[str, int], circuit: str, tmp_path: Path
) -> None:
    """Rather than slices of other heads under the same number."""
    shapes = projections("q_proj", "k_proj", "v_proj", "o_proj")
    path = series(tmp_path, shapes, WHOLE | changed, WHOLE)
    count = changed["num_attention_heads"]
    with pytest.warns(DamagedWarning, match=f"has {count} heads and {count} .* at step 0 of m, but 2 and 2"):
        table = measure(open_source(path), ["per"], [circuit])
    assert table[["step", "head", "status"]].to_records(index=False).tolist() == [
        *((0, head, "missing") for head in range(2)),
        *((1, head, "ok") for head in range(2)),
    ]


def test_each_layer_has_its_own_heads(tmp_path: Path) -> None:
    """OpenELM: fused, with head counts by layer."""
    layer = "transformer.layers.{}.attn"
    shapes = {f"{layer.format(0)}.qkv_proj": (3 * 4, 8), f"{layer.format(0)}.out_proj": (8, 4)}
    shapes |= {f"{layer.format(1)}.qkv_proj": (4 * 4, 8), f"{layer.format(1)}.out_proj": (8, 8)}
    config = {"model_type": "openelm", "num_query_heads": [1, 2], "num_kv_heads": [1, 1]}
    table = measure(open_source(series(tmp_path, shapes, config)), ["per"], ["ov_circuit", "qk_circuit"])
    assert set(table["status"]) == {"ok"}
    assert table.groupby(["component", "layer"])["head"].nunique().to_dict() == {
        (circuit, layer): heads for circuit in ("ov_circuit", "qk_circuit") for layer, heads in ((0, 1), (1, 2))
    }


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_qk_circuits_of_models_that_normalise_queries_and_keys_say_so(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path / "m" / "step1")
    sentence = "qk_circuit is not the score: this model normalises queries and keys (k_norm, q_norm)"
    asked = said(tmp_path / "m", tmp_path, components=["qk_circuit"])
    assert [line for line in asked if line.startswith(f"note: {sentence}")]
    assert [line for line in holdings(tmp_path / "m") if line.startswith(sentence)]
    assert "it is not the score" in (tmp_path / "analysis" / "default" / "report.html").read_text()
    assert not [line for line in said(tmp_path / "m", tmp_path, components=["ov_circuit"]) if "score" in line]
