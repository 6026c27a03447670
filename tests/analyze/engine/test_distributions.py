"""How entries are distributed: counted in bins that hold them all, and drawn beside a bell curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pico_analyze import open_run
from pico_analyze.engine.distributions import BIN, distributions
from pico_analyze.sources.run import Run
from pico_contract.errors import UserError
from pico_contract.layout import SNAPSHOT_WEIGHTS, RunLayout

Rewrite = Callable[[Path, Callable[[torch.Tensor], torch.Tensor]], None]


def test_densities_are_those_of_the_standardised_entries(run: Run) -> None:
    """Against counts of the entries themselves, bin by bin."""
    found = distributions(run, ["v_proj"], layers=[0])
    assert found["step"].unique().tolist() == [0, 1, 2]
    for step, rows in found.groupby("step"):
        entries = run.tensor(int(str(step)), "weights", "model.layers.0.self_attn.v_proj").double().flatten()
        z = ((entries - entries.mean()) / entries.std(correction=0)).numpy()
        counts = [np.count_nonzero((z >= c - BIN / 2) & (z < c + BIN / 2)) for c in rows["centre"]]
        assert rows["density"].tolist() == pytest.approx([count / len(z) / BIN for count in counts])
        assert rows["density"].sum() * BIN == pytest.approx(1)
        assert rows["standard_deviation"].iloc[0] == pytest.approx(float(entries.std(correction=0)))
        assert sum(counts) == rows["n"].iloc[0] == len(z)


def test_scale_and_place_change_nothing_but_the_standard_deviation(
    layout: RunLayout, run: Run, rewrite: Rewrite
) -> None:
    before = distributions(run, ["up_proj"], steps=[1])
    rewrite(layout.snapshot(1) / SNAPSHOT_WEIGHTS, lambda tensor: tensor.mul_(4).add_(8))
    after = distributions(open_run(layout.root), ["up_proj"], steps=[1])
    # Adding 8 rounds entries to fp32 anew, which moves a few of the 384 over the edge of a bin.
    assert (before["density"] - after["density"]).abs().sum() * BIN <= 4 / 384
    assert after["standard_deviation"].iloc[0] == pytest.approx(4 * before["standard_deviation"].iloc[0], rel=1e-6)


def test_an_outlier_far_away_has_a_bin(layout: RunLayout, rewrite: Rewrite) -> None:
    def with_outlier(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = 1000.0
        return tensor

    rewrite(layout.snapshot(0) / SNAPSHOT_WEIGHTS, with_outlier)
    found = distributions(open_run(layout.root), ["up_proj"], steps=[0])
    assert found["density"].sum() * BIN == pytest.approx(1)
    assert found.loc[found["density"] > 0, "centre"].max() == pytest.approx(np.sqrt(384), rel=0.02)


def test_what_is_not_finite_constant_or_damaged_is_left_out(layout: RunLayout, run: Run, rewrite: Rewrite) -> None:
    rewrite(layout.snapshot(1) / SNAPSHOT_WEIGHTS, lambda tensor: tensor.fill_(float("nan")))
    assert distributions(run, ["v_proj"])["step"].unique().tolist() == [0, 2]
    rewrite(layout.snapshot(1) / SNAPSHOT_WEIGHTS, lambda tensor: tensor.fill_(2.0))
    assert distributions(open_run(layout.root), ["v_proj"])["step"].unique().tolist() == [0, 2]
    damaged = open_run(layout.root)
    (layout.snapshot(0) / SNAPSHOT_WEIGHTS).unlink()
    assert distributions(damaged, ["v_proj"])["step"].unique().tolist() == [2]


def test_what_there_is_nothing_of_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match='the pattern "v_prj" matches no module'):
        distributions(run, ["v_prj"])
    with pytest.raises(UserError, match=r"has no weights of v_proj in layer \[7\]"):
        distributions(run, ["v_proj"], layers=[7])
    with pytest.raises(UserError, match=r"has no intact weights \(of split val\) to read"):
        distributions(run, split="val")
