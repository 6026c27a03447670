"""Which matrices a name stands for: plain modules in model order, and the OV circuit of each head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pico_analyze.components import MeasuredUnit, check_components, plan_units
from pico_analyze.linalg import FactoredMatrix, spectra
from pico_analyze.sources.run import Run
from pico_contract.errors import UserError
from torch import nn

LAYER = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
HEADS = [(4, 4), (4, 2), (4, 1), (8, 2)]


def ov_units(run: Run, kind: str) -> list[MeasuredUnit]:
    return plan_units(["ov_circuit"], kind, run.modules(0, kind), run.model)


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return layer


def written_by_head(run: Run, module: str, head: int, states: torch.Tensor) -> torch.Tensor:
    """o_proj of value states (rows, G * hd), each repeated for its group of query heads, all heads but one zeroed."""
    heads, kv_heads = run.model["num_attention_heads"], run.model["num_key_value_heads"]
    by_head = states.unflatten(-1, (kv_heads, -1)).repeat_interleave(heads // kv_heads, dim=1)  # rows, H, hd
    alone = torch.zeros_like(by_head)
    alone[:, head] = by_head[:, head]
    return linear(run.tensor(0, "weights", f"{module}.o_proj"))(alone.flatten(1)).detach()


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_ov_circuit_is_what_a_head_writes_where_it_attends_to_one_token(
    new_run: Callable[..., Run], make_shape: Any, heads: int, kv_heads: int
) -> None:
    run = new_run(make_shape(heads=heads, kv_heads=kv_heads))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for unit in ov_units(run, "weights"):
        states = linear(run.tensor(0, "weights", f"{unit.module}.v_proj"))(x).detach()
        for key, circuit in zip(unit.keys, unit.load(run, 0, "weights", None), strict=True):
            assert isinstance(circuit, FactoredMatrix)
            assert circuit.shape == (16, 16)
            assert circuit.left.shape[1] == 16 // heads
            assert key.head is not None
            expected = written_by_head(run, unit.module, key.head, states)
            torch.testing.assert_close(x @ circuit.dense().float().T, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_ov_activations_are_what_each_head_writes(
    new_run: Callable[..., Run], make_shape: Any, heads: int, kv_heads: int
) -> None:
    run = new_run(make_shape(heads=heads, kv_heads=kv_heads))
    for unit in ov_units(run, "activations"):
        states = run.tensor(0, "activations", f"{unit.module}.v_proj", "val")
        found = unit.load(run, 0, "activations", "val")
        for head, circuit in enumerate(found):
            assert circuit.shape == (12, 16)
            expected = written_by_head(run, unit.module, head, states)
            torch.testing.assert_close(circuit.dense().float(), expected, rtol=1e-5, atol=1e-5)


def test_ov_spectrum_is_that_of_the_dense_matrix(run: Run) -> None:
    for unit in ov_units(run, "weights"):
        circuits = unit.load(run, 1, "weights", None)
        for spectrum, circuit in zip(spectra(circuits), circuits, strict=True):
            dense = np.linalg.svd(circuit.dense().numpy(), compute_uv=False)
            np.testing.assert_allclose(spectrum.values, dense[:4], rtol=1e-10)
            np.testing.assert_allclose(dense[4:], 0, atol=1e-12)


def test_without_key_value_heads_each_head_has_its_own(new_run: Callable[..., Run], make_shape: Any) -> None:
    run = new_run(make_shape(heads=4, kv_heads=4))
    grouped = ov_units(run, "weights")[0].load(run, 0, "weights", None)
    del run.model["num_key_value_heads"]
    for circuit, same in zip(ov_units(run, "weights")[0].load(run, 0, "weights", None), grouped, strict=True):
        assert torch.equal(circuit.dense(), same.dense())


def test_ov_circuit_has_a_key_for_each_head_of_each_layer(run: Run) -> None:
    keys = [key for unit in ov_units(run, "weights") for key in unit.keys]
    assert [(key.layer, key.head) for key in keys] == [(layer, head) for layer in range(2) for head in range(4)]
    assert {key.component for key in keys} == {"ov_circuit"}
    assert [key.module for key in keys[::4]] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]


def test_ov_circuit_has_no_gradient(run: Run) -> None:
    assert plan_units(["ov_circuit"], "gradients", run.modules(0, "gradients", "val"), run.model) == []


def test_plain_modules_come_in_model_order_and_once() -> None:
    layers = [f"model.layers.{i}.{name}" for i in range(12) for name in LAYER]
    outside = ["lm_head", "model.embed_tokens", "model.norm"]
    units = plan_units(["*", "v_proj", "mlp.*"], "weights", sorted(layers + outside), {})
    assert [unit.module for unit in units] == layers + outside
    assert [unit.keys[0].layer for unit in units][:: len(LAYER)] == [*range(12), None]
    assert {unit.keys[0].component for unit in units} == {*LAYER, *outside}
    assert all(unit.keys[0].head is None for unit in units)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("v_proj", ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"]),
        ("model.layers.1.self_attn.v_proj", ["model.layers.1.self_attn.v_proj"]),
        ("layers.1.attention.v_proj", ["model.layers.1.self_attn.v_proj"]),
        ("swiglu.w_2", ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]),
    ],
)
def test_globs_and_earlier_names(run: Run, pattern: str, expected: list[str]) -> None:
    units = plan_units([pattern], "weights", run.modules(0, "weights"), run.model)
    assert [unit.module for unit in units] == expected
    loaded = units[0].load(run, 0, "weights", None)
    assert len(loaded) == 1
    assert torch.equal(loaded[0], run.tensor(0, "weights", expected[0]))


@pytest.mark.parametrize(
    ("component", "nearest"), [("ov_circut", '"ov_circuit"'), ("self_attn.v_prj", "self_attn.v_proj")]
)
def test_unknown_component_names_the_nearest(run: Run, component: str, nearest: str) -> None:
    with pytest.raises(UserError, match=component) as error:
        check_components([component], run.modules(0, "weights"))
    assert nearest in str(error.value)


def test_a_circuit_named_twice_is_taken_once(run: Run) -> None:
    modules = run.modules(0, "weights")
    twice = plan_units(["ov_circuit", "v_proj", "ov_circuit"], "weights", modules, run.model)
    assert twice == plan_units(["v_proj", "ov_circuit"], "weights", modules, run.model)
