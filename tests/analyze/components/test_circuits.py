"""The QK circuit, the MLP's path and the change of OV that gradients induce, against what they are defined by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pico_analyze import measure
from pico_analyze.components import MeasuredUnit, plan_units
from pico_analyze.components.circuits import CIRCUITS
from pico_analyze.linalg import FactoredMatrix, spectra
from pico_analyze.linalg.sample import Sample
from pico_analyze.metrics import METRICS
from pico_analyze.sources.run import Run
from pico_contract.errors import UserError

HEADS = [(4, 4), (4, 2), (4, 1), (8, 2)]


def units(run: Run, circuit: str, kind: str = "weights") -> list[MeasuredUnit]:
    return plan_units([circuit], kind, run.modules(0, kind, None if kind == "weights" else "val"), run.model)


def weight(run: Run, unit: MeasuredUnit, name: str, kind: str = "weights") -> torch.Tensor:
    return run.tensor(0, kind, f"{unit.module}.{name}", None if kind == "weights" else "val").double()


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_qk_circuit_gives_the_scores_of_a_head(
    new_run: Callable[..., Run], make_shape: Any, heads: int, kv_heads: int
) -> None:
    run = new_run(make_shape(heads=heads, kv_heads=kv_heads))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).double()
    for unit in units(run, "qk_circuit"):
        queries = (x @ weight(run, unit, "q_proj").T).unflatten(-1, (heads, -1))
        keys = (x @ weight(run, unit, "k_proj").T).unflatten(-1, (kv_heads, -1))
        scores = torch.einsum("ihd,jhd->hij", queries, keys.repeat_interleave(heads // kv_heads, dim=1))
        found = unit.load(run, 0, "weights", None)
        assert [key.head for key in unit.keys] == list(range(heads))
        for circuit, expected in zip(found, scores, strict=True):
            assert isinstance(circuit, FactoredMatrix)
            assert circuit.left.shape[1] == 16 // heads
            torch.testing.assert_close(x @ circuit.dense() @ x.T, expected)


def test_mlp_path_is_the_mlp_with_open_gates(run: Run) -> None:
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).double()
    found = units(run, "mlp_path")
    assert [(unit.module, unit.keys[0].layer, unit.keys[0].head) for unit in found] == [
        ("model.layers.0.mlp", 0, None),
        ("model.layers.1.mlp", 1, None),
    ]
    for unit in found:
        (path,) = unit.load(run, 0, "weights", None)
        expected = (x @ weight(run, unit, "up_proj").T) @ weight(run, unit, "down_proj").T
        assert isinstance(path, FactoredMatrix)
        torch.testing.assert_close(x @ path.dense().T, expected)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_induced_change_is_the_derivative_of_ov_along_the_gradient(
    new_run: Callable[..., Run], make_shape: Any, heads: int, kv_heads: int
) -> None:
    """By autograd through O[:, h] @ V[kv(h)]."""
    run = new_run(make_shape(heads=heads, kv_heads=kv_heads))

    def circuits(output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        by_head = value.unflatten(0, (kv_heads, -1)).repeat_interleave(heads // kv_heads, dim=0)  # H, hd, D
        return torch.einsum("ohd,hdi->hoi", output.unflatten(1, (heads, -1)), by_head)

    for unit in units(run, "ov_induced_change", "gradients"):
        at = tuple(weight(run, unit, name) for name in ("o_proj", "v_proj"))
        along = tuple(weight(run, unit, name, "gradients") for name in ("o_proj", "v_proj"))
        expected = torch.autograd.functional.jvp(circuits, at, along)[1]
        found = unit.load(run, 0, "gradients", "val")
        torch.testing.assert_close(torch.stack([change.dense() for change in found]), expected)
        assert {change.left.shape[1] for change in found if isinstance(change, FactoredMatrix)} == {2 * 16 // heads}


JOINED = [("ov_circuit", "weights", 16), ("ov_circuit", "activations", 8), ("ov_induced_change", "gradients", 32)]


@pytest.mark.parametrize(("circuit", "kind", "inner"), JOINED)
def test_joined_is_all_heads_side_by_side_and_kept_as_factors(run: Run, circuit: str, kind: str, inner: int) -> None:
    """4 heads of width 4 on 2 key-value heads: activations share the columns of v_out."""
    split = None if kind == "weights" else "val"
    for alone, unit in zip(units(run, circuit, kind), units(run, f"{circuit}_joined", kind), strict=True):
        (joined,) = unit.load(run, 0, kind, split)
        assert [(key.component, key.head, key.module) for key in unit.keys] == [(unit.circuit, None, alone.module)]
        assert isinstance(joined, FactoredMatrix)
        assert joined.left.shape[1] == inner
        dense = torch.cat([head.dense() for head in alone.load(run, 0, kind, split)], dim=1)
        torch.testing.assert_close(joined.dense(), dense)
        expected = np.linalg.svd(dense.numpy(), compute_uv=False)
        found = spectra([joined])[0].values.numpy()
        np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-9, atol=1e-12 * expected[0])


def test_a_circuit_of_some_layers_is_named_behind_what_it_lies_in(run: Run) -> None:
    components = ["layers.1.self_attn.ov_circuit", "*.qk_circuit", "layers.[0-3].mlp.mlp_path", "mlp_path"]
    frame = measure(run, ["per"], components, kinds=["weights"])
    found = frame.groupby("component")["layer"].unique().apply(list).to_dict()
    assert found == {"ov_circuit": [1], "qk_circuit": [0, 1], "mlp_path": [0, 1]}
    with pytest.raises(UserError, match=r'"layers.7.self_attn" matches no module; .* model\.layers\.1\.self_attn'):
        measure(run, ["per"], ["layers.7.self_attn.ov_circuit"])


def test_entries_of_circuits_are_measured_where_they_may_be_formed(run: Run, tmp_path: Path) -> None:
    asked = {"metrics": ["per", "gini", "max_abs"], "components": ["ov_circuit"], "cache": tmp_path}
    assert set(measure(run, **asked)["metric"]) == {"per"}
    frame = measure(run, **asked, dense_circuits=True)
    for row in frame[frame["metric"] != "per"].to_dict("records"):
        split = None if row["kind"] == "weights" else row["split"]
        (unit,) = (one for one in units(run, "ov_circuit", row["kind"]) if one.module == row["module"])
        dense = unit.load(run, row["step"], row["kind"], split)[row["head"]].dense()
        assert row["value"] == METRICS[row["metric"]].fn(dense).value
    pd.testing.assert_frame_equal(measure(run, **asked, dense_circuits=True), frame)
    assert set(measure(run, **asked)["metric"]) == {"per"}


@pytest.mark.parametrize(
    ("circuit", "kind", "rank"),
    [("qk_circuit", "weights", 4), ("ov_induced_change", "gradients", 8), ("mlp_path", "weights", 16)],
)
@pytest.mark.parametrize("inner", [10, 24])
def test_spectrum_is_that_of_the_dense_matrix(
    new_run: Callable[..., Run], make_shape: Any, circuit: str, kind: str, rank: int, inner: int
) -> None:
    """An MLP may be narrower or wider than the residual stream."""
    run = new_run(make_shape(inner=inner))
    rank = inner if circuit == "mlp_path" and inner < 16 else rank
    for unit in units(run, circuit, kind):
        products = unit.load(run, 0, kind, None if kind == "weights" else "val")
        for spectrum, product in zip(spectra(products), products, strict=True):
            dense = np.linalg.svd(product.dense().numpy(), compute_uv=False)
            np.testing.assert_allclose(spectrum.values, dense[:rank], rtol=1e-9)
            np.testing.assert_allclose(dense[rank:], 0, atol=1e-11)


def test_circuits_are_measured_of_the_kinds_that_define_them(run: Run) -> None:
    circuits = list(CIRCUITS)
    frame = measure(run, ["frobenius_norm"], circuits)
    found = frame.groupby("component")["kind"].unique().apply(set).to_dict()
    assert found == {
        "ov_circuit": {"weights", "activations"},
        "ov_induced_change": {"gradients"},
        "ov_circuit_joined": {"weights", "activations"},
        "ov_induced_change_joined": {"gradients"},
        "qk_circuit": {"weights"},
        "mlp_path": {"weights"},
    }
    assert frame.loc[frame["component"] == "mlp_path", "head"].isna().all()
    assert set(frame["status"]) == {"ok"}


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs == "sample"])
def test_samples_of_factors_are_measured_as_those_of_the_dense_matrix(name: str) -> None:
    metric = METRICS[name]
    draws = torch.Generator().manual_seed(0)
    factors = [torch.randn(*shape, generator=draws) for shape in ((40, 4), (4, 16), (40, 4), (4, 16))]
    x, y = (FactoredMatrix(left + 3, right) for left, right in (factors[:2], factors[2:]))
    given = (x, y) if metric.arity == 2 else (x,)
    found = metric.fn(*map(Sample.of, given), **metric.parameters)
    expected = metric.fn(*(Sample.of(one.dense()) for one in given), **metric.parameters)
    assert found.status == expected.status == "ok"
    assert found.value == pytest.approx(expected.value, rel=1e-9)
