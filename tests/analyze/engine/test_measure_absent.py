"""measure() of what is damaged, missing, not finite or zero: a status and no value, and the rest is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_analyze import measure, open_run
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.metrics import METRICS
from pico_contract.errors import UserError
from pico_contract.layout import SNAPSHOT_WEIGHTS, RunLayout, observed_file

ACTIVATIONS, GRADIENTS = observed_file("val", "activations"), observed_file("val", "gradients")
Rewrite = Callable[[Path, Callable[[torch.Tensor], torch.Tensor]], None]


def test_damaged_snapshot_is_warned_about_and_the_rest_measured(layout: RunLayout) -> None:
    (layout.snapshot(1) / SNAPSHOT_WEIGHTS).write_bytes(b"cut")
    with pytest.warns(
        DamagedWarning, match=r"step 1 is left out in part: .*weights\.safetensors has 3 bytes"
    ) as caught:
        frame = measure(open_run(layout.root), ["per"], ["v_proj"])
    assert len(caught) == 1
    assert set(frame.loc[frame["step"] == 1, "status"]) == {"damaged"}
    weights = frame[frame["kind"] == "weights"]
    assert weights.loc[weights["step"] != 1, "status"].tolist() == ["ok"] * 4


def test_file_that_shows_its_damage_when_read_is_warned_about_once(layout: RunLayout) -> None:
    file = layout.snapshot(1) / ACTIVATIONS
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.warns(DamagedWarning, match=r"step 1 .*val\.activations\.safetensors") as caught:
        frame = measure(open_run(layout.root), ["per", "cka"])
    assert len(caught) == 1
    at_1 = frame[frame["step"] == 1]
    assert set(at_1.loc[at_1["kind"] == "activations", "status"]) == {"damaged"}
    assert set(at_1.loc[at_1["kind"] != "activations", "status"]) == {"ok"}


def test_a_run_of_which_nothing_is_intact_is_a_mistake(layout: RunLayout) -> None:
    for directory in (*layout.snapshots.iterdir(), *layout.checkpoints.iterdir()):
        (directory / "manifest.json").unlink()
    with pytest.warns(DamagedWarning), pytest.raises(UserError, match='run "small" has no intact weights'):
        measure(open_run(layout.root))


def test_reference_without_activations_is_missing(layout: RunLayout) -> None:
    layout.snapshot(2).rename(layout.root / "elsewhere")
    frame = measure(open_run(layout.root), ["cka", "per"], ["v_proj"], reference=2)
    assert set(frame.loc[frame["metric"] == "cka", "status"]) == {"missing"}
    per = frame[(frame["metric"] == "per") & (frame["kind"] == "weights")]
    assert set(per["status"]) == {"ok"}


def test_last_reference_is_the_last_that_holds_activations(layout: RunLayout) -> None:
    layout.snapshot(2).rename(layout.root / "elsewhere")
    frame = measure(open_run(layout.root), ["cka"], ["v_proj"], steps=[0, 1])
    assert set(frame["reference_step"]) == {1}
    assert set(frame["status"]) == {"ok"}


def test_reference_of_other_rows_is_missing(layout: RunLayout, rewrite: Rewrite) -> None:
    rewrite(layout.snapshot(0) / ACTIVATIONS, lambda tensor: tensor[:5])
    frame = measure(open_run(layout.root), ["cka"], ["v_proj"])
    assert frame.loc[frame["step"] == 0, "status"].tolist() == ["missing"] * 2
    assert set(frame.loc[frame["step"] != 0, "status"]) == {"ok"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_entries_give_no_value(layout: RunLayout, rewrite: Rewrite, bad: float) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, 0] = bad
        return tensor

    for file in (SNAPSHOT_WEIGHTS, ACTIVATIONS):
        rewrite(layout.snapshot(1) / file, spoil)
    frame = measure(open_run(layout.root), [*METRICS, torch.median], ["*_proj"])
    spoilt = (frame["step"] == 1) & frame["kind"].isin(["weights", "activations"])
    assert set(frame.loc[spoilt, "status"]) == {"non_finite"}
    assert frame.loc[spoilt, "value"].isna().all()
    assert "non_finite" not in set(frame.loc[~spoilt, "status"])


def test_only_the_heads_that_read_a_non_finite_entry_have_no_value(layout: RunLayout, rewrite: Rewrite) -> None:
    """Row 0 of v_proj belongs to key-value head 0, which query heads 0 and 1 read; o_proj is spoilt for head 3."""

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, 0 if len(tensor) == 8 else -1] = math.nan
        return tensor

    rewrite(layout.snapshot(1) / SNAPSHOT_WEIGHTS, spoil)
    frame = measure(open_run(layout.root), ["per"], ["ov_circuit"], steps=[1], kinds=["weights"])
    assert frame["status"].tolist() == ["non_finite", "non_finite", "ok", "non_finite"] * 2


def test_non_finite_reference_gives_no_similarity(layout: RunLayout, rewrite: Rewrite) -> None:
    rewrite(layout.snapshot(0) / ACTIVATIONS, lambda tensor: tensor * math.inf)
    frame = measure(open_run(layout.root), ["cka", "cka_debiased"], ["v_proj"], reference="first")
    assert set(frame["status"]) == {"non_finite"}


def test_a_zero_matrix_has_a_per_of_zero(layout: RunLayout, rewrite: Rewrite) -> None:
    """An unused module's gradient, for instance."""
    rewrite(layout.snapshot(1) / GRADIENTS, torch.zeros_like)
    frame = measure(
        open_run(layout.root), ["per", "condition_number"], ["v_proj"], steps=[1], kinds=["gradients"], splits=["val"]
    )
    assert set(frame["status"]) == {"zero"}
    assert frame.loc[frame["metric"] == "per", "value"].tolist() == [0, 0]
    assert frame.loc[frame["metric"] == "condition_number", "value"].isna().all()
