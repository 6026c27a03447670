"""How far weights went in sizes of what they were: closed forms, an invariance, and numpy on a run's windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_analyze import measure
from pico_analyze.linalg import FactoredMatrix, WeightUpdate, difference
from pico_analyze.metrics.single import Outcome, update_to_weight_ratio
from pico_analyze.sources.run import Run
from pico_contract.errors import UserError

EYE = torch.eye(3, dtype=torch.float64)


def ratio(new: torch.Tensor, old: torch.Tensor) -> Outcome:
    return update_to_weight_ratio(WeightUpdate(difference(new, old), old))


def test_closed_forms() -> None:
    assert ratio(1.5 * EYE, EYE) == Outcome(0.5)
    assert ratio(EYE, EYE) == Outcome(0.0)
    assert ratio(-EYE, EYE) == Outcome(2.0)
    assert ratio(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])) == Outcome(0.75)
    assert ratio(EYE, 0 * EYE) == Outcome(None, "zero")


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=40)
def test_scale_and_rotation_of_both_change_nothing(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    old, change, turn = (torch.randn(5, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    new, turn = old + 0.01 * change, torch.linalg.qr(turn).Q
    before = ratio(new, old).value
    assert ratio(scale * new, scale * old).value == pytest.approx(before, rel=1e-9)
    assert ratio(turn @ new, turn @ old).value == pytest.approx(before, rel=1e-9)


def test_of_products_it_is_that_of_the_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right, d_left, d_right = (torch.randn(*s, generator=generator) for s in ((9, 2), (2, 7)) * 2)
    old, new = FactoredMatrix(left, right), FactoredMatrix(left + 0.1 * d_left, right + 0.1 * d_right)
    expected = np.linalg.norm((new.dense() - old.dense()).numpy()) / np.linalg.norm(old.dense().numpy())
    assert update_to_weight_ratio(WeightUpdate(difference(new, old), old)).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("window", "starts"), [("previous", {10: 0, 20: 10}), ("first", {10: 0, 20: 0})])
def test_of_a_run_over_any_window(new_run: Callable[..., Run], window: str, starts: dict[int, int]) -> None:
    run = new_run(steps=(0, 10, 20))
    components = ["v_proj", "mlp_path"]
    frame = measure(run, ["update_to_weight_ratio", "frobenius_norm"], components, kinds=["updates"], window=window)
    rows = frame[frame["metric"] == "update_to_weight_ratio"]
    assert dict(zip(rows["step"], rows["reference_step"], strict=True)) == starts
    assert set(rows["unit"]) == {"ratio"}
    for row in rows.itertuples():

        def dense(step: int, module: str = row.module) -> np.ndarray:
            if not module.endswith("mlp"):
                return run.tensor(step, "weights", module).double().numpy()
            down, up = (run.tensor(step, "weights", f"{module}.{name}").double() for name in ("down_proj", "up_proj"))
            return (down @ up).numpy()

        new, old = dense(row.step), dense(row.reference_step)
        assert row.value == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-9)


def test_it_is_defined_for_updates_alone(run: Run) -> None:
    with pytest.raises(UserError, match="nothing to measure"):
        measure(run, ["update_to_weight_ratio"], ["v_proj"])
    by_default = measure(run, None, ["v_proj"], kinds=["updates"])
    assert "update_to_weight_ratio" in set(by_default["metric"])
    assert not pd.isna(by_default["reference_step"]).any()
