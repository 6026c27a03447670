"""Updates over a window, and similarities to the step before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pico_analyze import linalg, measure, open_run
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.sources.run import Run
from pico_contract.errors import UserError
from pico_contract.layout import SNAPSHOT_WEIGHTS, RunLayout

STEPS = (0, 10, 20, 30)
V_PROJ = "model.layers.0.self_attn.v_proj"


def dense(run: Run, step: int, module: str, head: int | None) -> np.ndarray:
    """A module's weights, or the OV circuit of a head of two that share a value head, in float64."""
    if not module.endswith("self_attn"):
        return run.tensor(step, "weights", module).double().numpy()
    assert head is not None
    output, value = (run.tensor(step, "weights", f"{module}.{name}").double().numpy() for name in ("o_proj", "v_proj"))
    return output[:, 4 * head : 4 * head + 4] @ value[head // 2 * 4 : head // 2 * 4 + 4]


def storage_error(run: Run, step: int, module: str, head: int | None) -> float:
    """u ||W||_F of a module, u (||O||_F ||V||_2 + ||O||_2 ||V||_F) of the OV circuit of a head; u = 2^-24."""
    if head is None:
        return float(2**-24 * np.linalg.norm(dense(run, step, module, None)))
    output, value = (run.tensor(step, "weights", f"{module}.{name}").double().numpy() for name in ("o_proj", "v_proj"))
    o, v = output[:, 4 * head : 4 * head + 4], value[head // 2 * 4 : head // 2 * 4 + 4]
    return float(2**-24 * (np.linalg.norm(o) * np.linalg.norm(v, 2) + np.linalg.norm(o, 2) * np.linalg.norm(v)))


@pytest.mark.parametrize(
    ("window", "starts"),
    [
        ("previous", {10: 0, 20: 10, 30: 20}),
        ("first", {10: 0, 20: 0, 30: 0}),
        (10, {20: 10, 30: 10}),
    ],
)
def test_updates_are_differences_of_weights(
    new_run: Callable[..., Run], window: str | int, starts: dict[int, int]
) -> None:
    run = new_run(steps=STEPS)
    metrics = ["spectral_norm", "frobenius_norm", "numerical_rank"]
    frame = measure(run, metrics, ["v_proj", "ov_circuit"], kinds=["updates"], window=window)
    assert len(frame) == len(starts) * len(metrics) * (2 + 8)
    assert dict(zip(frame["step"], frame["reference_step"], strict=True)) == starts
    assert set(frame["kind"]) == {"updates"}
    assert set(frame["dtype"]) == {"float32"}
    for of, rows in frame.groupby(["step", "module", "head"], dropna=False):
        step, module, head = of[0], of[1], None if pd.isna(of[2]) else int(of[2])
        old, new = dense(run, starts[step], module, head), dense(run, step, module, head)
        value = rows.set_index("metric")["value"]
        assert value["spectral_norm"] == pytest.approx(np.linalg.norm(new - old, 2), rel=1e-9)
        assert value["frobenius_norm"] == pytest.approx(np.linalg.norm(new - old), rel=1e-9)
        expected = sum(storage_error(run, at, module, head) for at in (starts[step], step))
        assert rows["tol"].iloc[0] == pytest.approx(expected, rel=1e-6)
        assert value["numerical_rank"] == 8


def test_rank_of_a_merged_update_is_judged_by_the_weights_that_were_rounded(
    layout: RunLayout, rewrite: Callable[..., None]
) -> None:
    """A small rank-2 update added in fp32: beside the weights' own rounding it has rank 2, by itself full rank."""
    left = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))

    def to(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda old: weight.clone() if old.shape == (16, 24) else old

    for step, weight in enumerate((base, (base.double() + 1e-4 * left @ left.T).float())):
        rewrite(layout.snapshot(step) / SNAPSHOT_WEIGHTS, to(weight))
    run = open_run(layout.root)
    frame = measure(run, ["numerical_rank"], ["down_proj"], steps=[1], kinds=["updates"])
    assert frame["value"].tolist() == [2.0, 2.0]
    alone = linalg.spectra([run.tensor(1, "weights", "model.layers.0.mlp.down_proj") - base])[0]
    assert len(alone.significant) > 2


def test_an_update_is_as_exact_as_the_coarser_of_its_ends(layout: RunLayout, rewrite: Callable[..., None]) -> None:
    rewrite(layout.snapshot(0) / SNAPSHOT_WEIGHTS, lambda tensor: tensor.bfloat16())
    frame = measure(open_run(layout.root), ["numerical_rank"], ["q_proj"], kinds=["updates"])
    assert dict(zip(frame["step"], frame["dtype"], strict=True)) == {1: "bfloat16", 2: "float32"}


def test_an_update_is_no_member_of_a_pair(run: Run) -> None:
    with pytest.raises(UserError, match="nothing to measure"):
        measure(run, ["cka"], ["v_proj"], kinds=["updates"])


def test_steps_without_a_window_are_missing_where_they_are_asked_for(run: Run) -> None:
    frame = measure(run, ["per"], ["v_proj"], steps=[0, 1], kinds=["updates"])
    assert frame.groupby("step")["status"].unique().apply(list).to_dict() == {0: ["missing"], 1: ["ok"]}
    assert frame.loc[frame["step"] == 0, "reference_step"].isna().all()


def test_each_weight_is_read_once_whatever_the_window(
    new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(steps=STEPS)
    read: list[tuple[Any, ...]] = []
    original = Run.tensor

    def counted(self: Run, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        read.append((step, kind, module))
        return original(self, step, kind, module, split)

    monkeypatch.setattr(Run, "tensor", counted)
    for window in ("previous", "first"):
        read.clear()
        measure(run, ["per"], ["v_proj"], kinds=["updates"], window=window)
        assert len(read) == len(set(read)) == 2 * len(STEPS)
    for reference in ("previous", "first", "last"):
        read.clear()
        measure(run, ["cka"], ["v_proj"], kinds=["activations"], reference=reference)
        assert len(read) == len(set(read)) == 2 * len(STEPS)


def test_vectors_and_shapes_that_change_have_updates_or_none(layout: RunLayout, rewrite: Callable[..., None]) -> None:
    rewrite(layout.snapshot(1) / SNAPSHOT_WEIGHTS, lambda old: old[:4] if old.shape == (8, 16) else old)
    frame = measure(open_run(layout.root), ["max_abs"], ["v_proj", "q_proj"], kinds=["updates"])
    found = frame.groupby("component")["status"].unique().apply(list).to_dict()
    assert found == {"self_attn.q_proj": ["ok"]}


def test_a_step_that_cannot_be_read_has_no_update_and_begins_none(layout: RunLayout) -> None:
    file = layout.snapshot(1) / SNAPSHOT_WEIGHTS
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.warns(DamagedWarning, match=r"step 1 .*weights\.safetensors") as caught:
        frame = measure(open_run(layout.root), ["per"], ["v_proj"], kinds=["weights", "updates"])
    assert len(caught) == 1
    weights = frame[frame["kind"] == "weights"]
    assert weights.groupby("step")["status"].first().to_dict() == {0: "ok", 1: "damaged", 2: "ok"}
    updates = frame[frame["kind"] == "updates"]
    found = updates[["step", "reference_step", "status"]].drop_duplicates().to_numpy().tolist()
    assert found == [[1, 0, "damaged"], [2, 0, "ok"]]


def test_similarity_to_the_step_before(new_run: Callable[..., Run]) -> None:
    run = new_run(steps=STEPS)
    frame = measure(run, ["cka", "per"], ["v_proj", "ov_circuit"], kinds=["activations"], reference="previous")
    similar = frame[frame["metric"] == "cka"]
    pairs = similar[["step", "reference_step"]].drop_duplicates().astype(object)
    assert pairs.where(pairs.notna(), None).to_numpy().tolist() == [[0, None], [10, 0], [20, 10], [30, 20]]
    assert set(similar.loc[similar["step"] == 0, "status"]) == {"missing"}
    assert set(frame.loc[frame["metric"] == "per", "status"]) == {"ok"}
    for step, before in ((10, 0), (20, 10), (30, 20)):
        fixed = measure(
            run, ["cka"], ["v_proj", "ov_circuit"], steps=[step], kinds=["activations"], reference=before
        ).reset_index(drop=True)
        at_step = similar[similar["step"] == step].reset_index(drop=True)
        pd.testing.assert_frame_equal(at_step, fixed, rtol=1e-12)


def test_the_step_before_need_not_be_among_those_measured(new_run: Callable[..., Run]) -> None:
    run = new_run(steps=STEPS)
    some = measure(run, ["cka"], ["v_proj"], steps=[0, 30], kinds=["activations"], reference="previous")
    all_ = measure(run, ["cka"], ["v_proj"], kinds=["activations"], reference="previous")
    assert some.loc[some["step"] == 30, "value"].tolist() == all_.loc[all_["step"] == 30, "value"].tolist()
    assert some.loc[some["step"] == 30, "reference_step"].tolist() == [20, 20]


@pytest.mark.parametrize("window", ["last", 2])
def test_a_window_that_no_step_lies_behind_gives_nothing(run: Run, window: str | int) -> None:
    with pytest.raises(UserError, match="nothing to measure"):
        measure(run, ["per"], ["v_proj"], kinds=["updates"], window=window)
