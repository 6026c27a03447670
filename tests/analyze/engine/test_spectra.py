"""Singular values over steps: those of the matrices themselves, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_analyze import open_run
from pico_analyze.engine.spectra import MOST_STEPS, spectra
from pico_analyze.sources.run import Run
from pico_contract.errors import UserError
from pico_contract.layout import SNAPSHOT_WEIGHTS, RunLayout


def test_values_are_those_of_the_matrix_at_each_step(run: Run) -> None:
    found = spectra(run, ["v_proj"], layers=[0])
    assert found["step"].unique().tolist() == [0, 1, 2]
    for step, rows in found.groupby("step"):
        matrix = run.tensor(int(str(step)), "weights", "model.layers.0.self_attn.v_proj")
        assert rows["value"].tolist() == pytest.approx(torch.linalg.svdvals(matrix.double()).tolist())
        assert rows["index"].tolist() == list(range(1, 9))


def test_circuits_have_the_values_of_every_head(run: Run) -> None:
    found = spectra(run, ["ov_circuit"], layers=[1], steps=[2])
    assert found["head"].unique().tolist() == [0, 1, 2, 3]
    output = run.tensor(2, "weights", "model.layers.1.self_attn.o_proj").double()
    value = run.tensor(2, "weights", "model.layers.1.self_attn.v_proj").double()
    dense = torch.linalg.svdvals(output[:, 12:16] @ value[4:8])
    assert found.loc[found["head"] == 3, "value"].tolist() == pytest.approx(dense[:4].tolist())


def test_by_default_the_middle_layer_at_a_few_steps(new_run: Callable[..., Run]) -> None:
    run = new_run(steps=tuple(range(11)))
    found = spectra(run)
    assert found["layer"].unique().tolist() == [1]
    assert found["step"].unique().tolist() == [0, 2, 4, 6, 8, 10]
    assert found["step"].nunique() == MOST_STEPS
    assert "ov_circuit" in set(found["component"])


def test_what_is_not_finite_or_damaged_is_left_out(
    layout: RunLayout, run: Run, rewrite: Callable[[Path, Callable[[torch.Tensor], torch.Tensor]], None]
) -> None:
    rewrite(layout.snapshot(1) / SNAPSHOT_WEIGHTS, lambda tensor: tensor.fill_(float("inf")))
    assert spectra(run, ["v_proj"])["step"].unique().tolist() == [0, 2]
    damaged = open_run(layout.root)
    (layout.snapshot(0) / SNAPSHOT_WEIGHTS).unlink()
    assert spectra(damaged, ["v_proj"])["step"].unique().tolist() == [2]


def test_what_there_is_nothing_of_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match='the pattern "v_prj" matches no module'):
        spectra(run, ["v_prj"])
    with pytest.raises(UserError, match=r"has no matrices of v_proj in layer \[7\]"):
        spectra(run, ["v_proj"], layers=[7])
