"""The low-rank update of a cycle: closed forms, invariances, the dense matrix as oracle, and what a run lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze import measure, open_run
from pico_analyze.components import plan_units
from pico_analyze.components.low_rank import lora_update
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.linalg import FactoredMatrix, spectra
from pico_analyze.metrics import METRICS
from pico_analyze.sources.live_step import ObservedStep
from pico_analyze.sources.run import Run
from pico_contract import codec, names
from pico_contract.errors import UserError
from pico_contract.layout import MANIFEST, SNAPSHOT_WEIGHTS, RunLayout
from pico_contract.observer import Observation, ObservedRun

from ...support.low_rank_run import CONFIG, DOWN_PROJ, LOW_RANK, Q_PROJ, Plan, write_low_rank_run

SPECTRAL = [name for name, metric in METRICS.items() if metric.needs == "spectrum"]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """Restarts at steps 2, 4 and 6; nothing may change it."""
    return write_low_rank_run(tmp_path_factory.mktemp("relora") / "low")


@pytest.fixture(scope="module")
def run(layout: RunLayout) -> Run:
    return open_run(layout.root)


def stored(layout: RunLayout, step: int) -> dict[str, torch.Tensor]:
    return codec.read_tensors(layout.snapshot(step) / SNAPSHOT_WEIGHTS)


def dense(layout: RunLayout, module: str, step: int) -> np.ndarray:
    """The update of the cycle by its definition, float64."""
    of = {name: tensor.double().numpy() for name, tensor in stored(layout, step).items()}
    if names.merged_B(module) in of:
        return of[names.merged_B(module)] @ of[names.merged_A(module)]
    return of[names.lora_scale(module)] * (of[names.lora_B(module)] @ of[names.lora_A(module)])


def observed(tensors: dict[str, torch.Tensor]) -> ObservedStep:
    known = ObservedRun(RunLayout(Path("none")), "known", CONFIG, (Q_PROJ,), (("weights", None),))
    return ObservedStep(known, Observation(0, 0, {("weights", None): tensors}))


def factors(left: torch.Tensor, right: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
    of = {names.lora_A(Q_PROJ): right, names.lora_B(Q_PROJ): left, names.lora_scale(Q_PROJ): torch.tensor([scale])}
    return of | {names.base(Q_PROJ): torch.eye(len(left)), f"{Q_PROJ}.weight": torch.eye(len(left))}


def test_known_singular_values_times_the_scale_in_closed_form() -> None:
    """B = [4 e_1, 2 e_2, e_3], A = [e_4, e_5, e_6] in 8 dimensions and a scale of 0.5: 2, 1 and 0.5."""
    left = torch.eye(8)[:, :3] * torch.tensor([4.0, 2.0, 1.0])
    source = observed(factors(left, torch.eye(8)[3:6], 0.5))
    frame = measure(source, SPECTRAL, ["lora_update"])
    assert set(frame["component"]) == {"self_attn.q_proj.lora_update"}
    rows = frame.set_index("metric")
    p = np.array([4, 2, 1]) / 7
    assert rows.loc["effective_rank", "value"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert rows.loc["per", "value"] == pytest.approx(rows.loc["effective_rank", "value"] / 8, rel=1e-12)
    expected = {"numerical_rank": 3, "effective_condition_number": 4, "spectral_norm": 2, "nuclear_norm": 3.5}
    for metric, value in expected.items():
        assert rows.loc[metric, "value"] == pytest.approx(value, rel=1e-12)
    assert rows.loc["condition_number", "status"] == "rank_deficient"
    factor = np.sqrt(4**2 + 2**2 + 1) * 1 + 4 * np.sqrt(3)  # ||B||_F ||A||_2 + ||B||_2 ||A||_F
    assert rows.loc["per", "tol"] == pytest.approx(0.5 * 2**-24 * factor, rel=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), rank=st.integers(1, 5), power=st.integers(-3, 3))
def test_the_update_does_not_depend_on_how_it_is_factored(seed: int, rank: int, power: int) -> None:
    """(B G, G^-1 A) for orthogonal G, and a power of two moved from B into the scale, are the same update."""
    draws = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(shape, generator=draws).double() for shape in ((12, rank), (rank, 12)))
    turn = torch.linalg.qr(torch.randn(rank, rank, generator=draws, dtype=torch.float64)).Q
    source = observed(factors(left, right, 2.0))
    other = observed(factors(left @ turn * 2.0**power, turn.T @ right, 2.0 ** (1 - power)))
    one, two = (spectra(lora_update(of, Q_PROJ, 0, "weights", None))[0] for of in (source, other))
    np.testing.assert_allclose(one.values, two.values, rtol=1e-10, atol=1e-12 * one.spectral_norm)
    assert len(one.significant) == len(two.significant) == rank


@pytest.mark.parametrize("module", [Q_PROJ, DOWN_PROJ])
def test_every_spectral_metric_is_that_of_the_dense_matrix_in_float64(run: Run, module: str) -> None:
    """The oracle is numpy's SVD of the formed product; what it finds beyond the rank is rounding."""
    component = f"{names.parse(module).component}.lora_update"
    frame = measure(run, [*SPECTRAL, "max_abs", "gini"], [component], steps=[1, 2, 3, 6], dense_circuits=True)
    for of, rows in frame[frame["layer"] == 0].groupby("step"):
        matrix = dense(run.layout, module, int(of))
        values = np.linalg.svd(matrix, compute_uv=False)
        found = rows.set_index("metric")["value"]
        p = values[:4] / values[:4].sum()
        eps = np.finfo(np.float32).eps
        assert found["numerical_rank"] == np.linalg.matrix_rank(matrix, tol=max(matrix.shape) * eps * values[0]) == 4
        assert found["effective_condition_number"] == pytest.approx(values[0] / values[3], rel=1e-8)
        assert found["per"] == pytest.approx(np.exp(-(p * np.log(p)).sum()) / 48, rel=1e-8)
        assert found["frobenius_norm"] == pytest.approx(np.linalg.norm(matrix), rel=1e-10)
        assert found["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-8)
        assert found["max_abs"] == pytest.approx(np.abs(matrix).max(), rel=1e-12)


def test_a_spectrum_comes_from_a_core_of_the_size_of_the_rank(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FactoredMatrix) -> torch.Tensor:
        raise AssertionError("a dense product was formed")

    monkeypatch.setattr(FactoredMatrix, "dense", refuse)
    frame = measure(run, SPECTRAL, ["lora_update"])
    assert len(spectra(lora_update(run, Q_PROJ, 3, "weights", None))[0].values) == 4
    assert (frame["status"] == "ok").any()


def test_at_a_restart_it_is_what_was_merged_into_the_base(run: Run) -> None:
    for step in (2, 4, 6):
        (update,) = lora_update(run, Q_PROJ, step, "weights", None)
        old, new = (run.tensor(s, "weights", names.base(Q_PROJ)).double() for s in (step - 1, step))
        assert isinstance(update, FactoredMatrix)
        torch.testing.assert_close(update.dense(), new - old, rtol=0, atol=1e-6)  # half an eps of entries below 8
        assert not run.tensor(step, "weights", names.lora_B(Q_PROJ)).any()


def test_it_is_zero_at_initialisation(run: Run) -> None:
    frame = measure(run, ["per", "numerical_rank", "frobenius_norm"], ["lora_update"], steps=[0])
    assert set(frame["value"]) == {0.0}
    assert set(frame.loc[frame["metric"] != "frobenius_norm", "status"]) == {"zero"}


def test_default_components_of_a_low_rank_run_gain_the_update_and_nothing_else(run: Run) -> None:
    frame = measure(run, ["per"])
    assert set(frame.loc[frame["kind"] == "weights", "component"]) == {
        *("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"),
        *("self_attn.q_proj.lora_update", "mlp.down_proj.lora_update"),
    }
    train = frame[(frame["kind"] == "gradients") & (frame["split"] == "train")]
    assert set(train["component"]) == {"self_attn.v_proj"}


def test_plain_components_are_measured_as_if_there_were_no_factors(run: Run) -> None:
    """The tensor of the module is the effective one, from wherever the step has it."""
    frame = measure(run, ["frobenius_norm"], ["q_proj"], kinds=["weights"])
    for row in frame[frame["layer"] == 0].to_dict("records"):
        of = stored(run.layout, row["step"]) if row["step"] != 6 else {}
        of |= codec.read_tensors(run.layout.checkpoint(6) / "model.safetensors") if row["step"] == 6 else {}
        assert row["value"] == pytest.approx(float(of[f"{Q_PROJ}.weight"].double().norm()), rel=1e-12)


def test_one_module_is_chosen_by_a_glob_before_the_name(run: Run) -> None:
    for component, modules in {
        "layers.0.self_attn.q_proj.lora_update": [Q_PROJ],
        "down_proj.lora_update": [name for name in LOW_RANK if "down" in name],
        "attention.q_proj.lora_update": [name for name in LOW_RANK if "q_proj" in name],
    }.items():
        assert list(measure(run, ["per"], [component])["module"].unique()) == modules
    with pytest.raises(
        UserError, match=r'"layers.0.self_attn.v_proj" matches no module; the nearest names are: .*q_proj'
    ):
        measure(run, ["per"], ["layers.0.self_attn.v_proj.lora_update"])


def test_units_come_in_the_order_of_the_forward_pass(run: Run) -> None:
    units = plan_units(["lora_update"], "weights", run.modules(1, "weights"), run.model)
    assert [unit.module for unit in units] == list(LOW_RANK)
    for kind in ("gradients", "activations", "updates"):
        assert plan_units(["lora_update"], kind, run.modules(1, "weights"), run.model) == []


def test_before_the_factors_begin_it_is_missing_and_the_rest_measured(tmp_path: Path) -> None:
    run = open_run(write_low_rank_run(tmp_path / "warm", Plan(warm=2, restarts={4: 2})).root)
    frame = measure(run, ["numerical_rank"], kinds=["weights"])
    found = frame[frame["component"] == "self_attn.q_proj.lora_update"].groupby("step")[["status", "value"]].first()
    assert found["status"].to_dict() == {0: "missing", 1: "missing", 2: "zero", **dict.fromkeys(range(3, 7), "ok")}
    assert found["value"].dropna().to_dict() == {2: 0, 3: 4, 4: 4, 5: 2, 6: 2}, "the rank from step 4 on is 2"
    assert set(frame.loc[frame["component"] == "self_attn.q_proj", "status"]) == {"ok"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_judged_with_the_precision_of_the_stored_factors(tmp_path: Path, dtype: torch.dtype) -> None:
    run = open_run(write_low_rank_run(tmp_path / "low", Plan(observed=(0, 1), restarts={}, stored=dtype)).root)
    row = measure(run, ["spectral_norm"], ["down_proj.lora_update"], steps=[1]).iloc[0]
    assert row["dtype"] == str(dtype).removeprefix("torch.")
    left, right = (run.tensor(1, "weights", name(DOWN_PROJ)).double().numpy() for name in (names.lora_B, names.lora_A))
    norms = [[np.linalg.norm(factor, order) for order in (None, 2)] for factor in (left, right)]
    expected = torch.finfo(dtype).eps / 2 * 2 * (norms[0][0] * norms[1][1] + norms[0][1] * norms[1][0])
    assert row["tol"] == pytest.approx(expected, rel=1e-9), "of a scale of 2"


def test_factors_are_plain_modules_of_weights_and_training_gradients(run: Run) -> None:
    frame = measure(run, ["frobenius_norm"], ["self_attn.q_proj.lora_A", "*.lora_B"])
    found = frame[["kind", "split", "component"]].drop_duplicates()
    assert set(found.itertuples(index=False, name=None)) == {
        (kind, split, component)
        for kind, split in (("weights", pd.NA), ("gradients", "train"))
        for component in ("self_attn.q_proj.lora_A", "self_attn.q_proj.lora_B", "mlp.down_proj.lora_B")
    }
    row = frame[(frame["kind"] == "gradients") & (frame["step"] == 3)].iloc[0]
    tensor = codec.read_tensors(run.layout.snapshot(3) / "train.gradients.safetensors")[f"{row['module']}.weight"]
    assert row["value"] == pytest.approx(float(tensor.double().norm()), rel=1e-12)
    assert (row["n"], row["d"]) == tuple(tensor.shape)


def test_what_is_no_matrix_of_its_own_is_no_module_and_can_be_read(run: Run) -> None:
    for kind, split in (("weights", None), ("gradients", "train")):
        endings = {name.rpartition(".")[2] for name in run.modules(3, kind, split)}
        assert endings <= {"lora_A", "lora_B", "q_proj", "v_proj", "down_proj"}
    assert run.tensor(3, "weights", names.lora_scale(Q_PROJ)).tolist() == [2.0]
    assert run.tensor(3, "gradients", names.lora_gain(Q_PROJ), "train").shape == (1,)
    assert run.modules(6, "weights").count(Q_PROJ) == 1


def test_a_damaged_file_of_factors_costs_them_alone(tmp_path: Path) -> None:
    """Of step 6 the effective weights lie in the checkpoint."""
    layout = write_low_rank_run(tmp_path / "low")
    file = layout.snapshot(6) / SNAPSHOT_WEIGHTS
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.warns(DamagedWarning, match=r"step 6 .*weights\.safetensors"):
        frame = measure(open_run(layout.root), ["per"], steps=[5, 6], kinds=["weights", "updates"])
    status = frame[frame["kind"] == "weights"].groupby(["component", "step"])["status"].first()
    assert status["self_attn.q_proj", 6] == "ok"
    assert set(frame.loc[frame["kind"] == "updates", "status"]) == {"ok"}
    assert status["self_attn.q_proj.lora_update", 6] == "damaged"
    assert status["self_attn.q_proj.lora_update", 5] == "ok"


def test_results_are_kept_by_both_files_of_a_step(tmp_path: Path, rewrite: Callable[..., None]) -> None:
    layout = write_low_rank_run(tmp_path / "low")
    before = measure(open_run(layout.root), ["frobenius_norm"], ["lora_update"], steps=[6], cache=tmp_path / "cache")
    rewrite(layout.snapshot(6) / SNAPSHOT_WEIGHTS, lambda tensor: 2 * tensor)
    manifest = layout.snapshot(6) / MANIFEST
    file = layout.snapshot(6) / SNAPSHOT_WEIGHTS
    old = open_run(layout.root).fingerprint(6, "weights").split()[1]
    manifest.write_text(manifest.read_text().replace(old, codec.sha256_file(file)))
    after = measure(open_run(layout.root), ["frobenius_norm"], ["lora_update"], steps=[6], cache=tmp_path / "cache")
    np.testing.assert_allclose(after["value"], 4 * before["value"], rtol=1e-12)


def test_what_is_observed_in_memory_is_measured_as_what_is_stored(run: Run) -> None:
    frame = measure(observed(stored(run.layout, 3)), ["per", "numerical_rank"], ["lora_update"])
    on_disk = measure(run, ["per", "numerical_rank"], ["lora_update"], steps=[3])
    assert frame["value"].tolist() == on_disk["value"].tolist()
