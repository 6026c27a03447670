"""Updates of low-rank runs over windows: of the effective weights, and through the factors of every restart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pico_analyze import linalg, measure, open_run
from pico_analyze.components import MeasuredUnit
from pico_analyze.components.low_rank import base_dtypes, cumulative_lora_update, explains
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.sources.run import Run
from pico_contract import names
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import SNAPSHOT_WEIGHTS

from ...support.low_rank_run import DOWN_PROJ, LOW_RANK, Q_PROJ, Plan, Projection, write_low_rank_run

EPS = float(np.finfo(np.float32).eps)
CUMULATIVE = "cumulative_lora_update"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Restarts at steps 2, 4 and 6, rank 4, observed at every step."""
    return open_run(write_low_rank_run(tmp_path_factory.mktemp("relora") / "low").root)


def change_on_disk(run: Run, module: str, start: int, end: int) -> np.ndarray:
    new, old = (run.tensor(step, "weights", module).double().numpy() for step in (end, start))
    return new - old


@pytest.mark.parametrize("module", [Q_PROJ, DOWN_PROJ])
@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, 2), (0, 3), (0, 6), (2, 6), (1, 2), (1, 4), (3, 6), (4, 5), (2, 3), (1, 5)]
)
def test_factors_give_the_change_of_the_effective_weights(run: Run, module: str, start: int, end: int) -> None:
    """From and to any point of a cycle, up to fp32 rounding of weights below 8 at both ends and at each merge."""
    found = cumulative_lora_update(run, module, start, end)
    np.testing.assert_allclose(found.matrix.dense(), change_on_disk(run, module, start, end), rtol=0, atol=16 * EPS)
    weight = run.tensor(start, "weights", module).double().numpy()
    np.testing.assert_allclose(found.start, weight, rtol=0, atol=8 * EPS)


@pytest.mark.parametrize("module", [Q_PROJ, DOWN_PROJ])
def test_the_spectrum_from_factors_is_that_of_the_dense_product(run: Run, module: str) -> None:
    found = cumulative_lora_update(run, module, 0, 6).matrix
    expected = np.linalg.svd(found.dense().numpy(), compute_uv=False)
    values = linalg.spectra([found])[0].values.numpy()
    np.testing.assert_allclose(values[:12], expected[:12], rtol=1e-10)
    assert (expected[12:] < 1e-13 * expected[0]).all()


@pytest.mark.parametrize(("rank", "ranks"), [(4, [4, 8, 12, 16, 20]), (20, [20, 40, 48, 48, 48])])
def test_the_rank_after_k_restarts_is_k_times_r_up_to_full_rank(tmp_path: Path, rank: int, ranks: list[int]) -> None:
    """From factors, in float64 and as the table has it; and of W(t2) - W(t1) on disk, with the tolerance of weights."""
    restarts = dict.fromkeys((2, 4, 6, 8, 10))
    plan = Plan(observed=(0, *restarts), restarts=restarts, rank=rank, checkpoints=(), size=1e-2)
    run = open_run(write_low_rank_run(tmp_path / "low", plan).root)
    frame = measure(run, ["numerical_rank"], ["q_proj", CUMULATIVE], kinds=["updates"], window="first")
    for component in ("self_attn.q_proj", "self_attn.q_proj.cumulative_lora_update"):
        rows = frame[frame["component"] == component]
        assert rows.groupby("step")["value"].unique().apply(list).to_dict() == {
            step: [float(rank)] for step, rank in zip(restarts, ranks, strict=True)
        }
    for step, expected in zip(restarts, ranks, strict=True):
        for module in LOW_RANK:
            product = cumulative_lora_update(run, module, 0, step).matrix
            exact = np.linalg.matrix_rank(product.dense().numpy())  # eps of float64
            assert exact == len(linalg.spectra([product])[0].nonzero) == expected


def test_a_merged_update_has_full_rank_under_the_eps_of_float64_and_its_own_under_that_of_storage() -> None:
    """The example of a merged rank-16 update of a 96 x 96 fp32 weight, through a restart's own arithmetic."""
    draws = torch.Generator().manual_seed(0)
    one = Projection(torch.randn(96, 96, generator=draws), rank=16, scale=2.0, generator=draws)
    before = one.base.clone()
    one.step()
    one.restart()
    change = one.base.double() - before.double()
    values = torch.linalg.svdvals(change)
    assert int((values > 96 * torch.finfo(torch.float64).eps * values[0]).sum()) == 96
    assert int((values > 96 * EPS * torch.linalg.svdvals(before.double())[0]).sum()) == 16


def test_updates_of_plain_modules_stay_those_of_effective_weights(run: Run) -> None:
    """Beside the factors as without them: value, dtype and the tolerance, the sum of both ends'."""
    frame = measure(run, ["frobenius_norm", "numerical_rank"], ["q_proj"], kinds=["updates"], window=0)
    for step, rows in frame[frame["layer"] == 0].groupby("step"):
        change = change_on_disk(run, Q_PROJ, 0, int(step))
        old, new = (run.tensor(s, "weights", Q_PROJ).double().numpy() for s in (0, int(step)))
        tol = EPS / 2 * (np.linalg.norm(old) + np.linalg.norm(new))
        found = rows.set_index("metric")["value"]
        assert found["frobenius_norm"] == pytest.approx(np.linalg.norm(change), rel=1e-9)
        assert found["numerical_rank"] == np.linalg.matrix_rank(change, tol=tol)
        assert set(rows["dtype"]) == {"float32"}
        assert rows["tol"].tolist() == pytest.approx([tol, tol], rel=1e-6)


def test_an_update_is_no_more_exact_than_the_base_that_merges_are_rounded_in(tmp_path: Path) -> None:
    """A base in bfloat16: with the eps of the fp32 effective weights the rounding of merges would count as rank."""
    plan = Plan(base=torch.bfloat16, restarts={2: None, 4: None}, size=3e-2)
    run = open_run(write_low_rank_run(tmp_path / "low", plan).root)
    frame = measure(run, ["numerical_rank"], ["q_proj", "v_proj", f"q_proj.{CUMULATIVE}"], kinds=["updates"], window=0)
    rows = frame[(frame["step"] == 4) & (frame["layer"] == 0)].set_index("component")
    dtypes = {
        "self_attn.q_proj": "bfloat16",
        "self_attn.v_proj": "float32",
        f"self_attn.q_proj.{CUMULATIVE}": "float32",
    }
    assert rows["dtype"].to_dict() == dtypes
    weights = run.tensor(0, "weights", Q_PROJ).double(), run.tensor(4, "weights", Q_PROJ).double()
    change = torch.linalg.svdvals(weights[1] - weights[0])
    largest = max(float(torch.linalg.svdvals(weight)[0]) for weight in weights)
    assert int((change > 48 * EPS * largest).sum()) == 48
    assert rows["value"]["self_attn.q_proj"] <= rows["value"][f"self_attn.q_proj.{CUMULATIVE}"] == 8


def test_effective_weights_are_no_more_exact_than_the_base_they_were_merged_in(tmp_path: Path) -> None:
    """Of q_proj, which is low-rank, and of circuits that are made of it; v_proj and o_proj are not."""
    run = open_run(write_low_rank_run(tmp_path / "low", Plan(base=torch.bfloat16)).root)
    frame = measure(run, ["numerical_rank"], ["q_proj", "v_proj"], steps=[4])
    rows = frame[(frame["layer"] == 0) & (frame["kind"] == "weights")].groupby("component").first()
    assert rows["dtype"].to_dict() == {"self_attn.q_proj": "bfloat16", "self_attn.v_proj": "float32"}
    for circuit, dtypes in (("qk_circuit", [torch.bfloat16]), ("ov_circuit", []), ("lora_update", [])):
        made_of = MeasuredUnit(circuit, "model.layers.0.self_attn", ()).effective_weights("weights")
        assert base_dtypes(run, made_of, 4) == dtypes
    size = float(run.tensor(4, "weights", Q_PROJ).double().norm())
    assert rows["tol"]["self_attn.q_proj"] == pytest.approx(2**-8 * size, rel=1e-6)


def test_the_table_says_of_which_window_and_judges_by_the_largest_of_what_is_summed(run: Run) -> None:
    metrics = ["spectral_norm", "update_to_weight_ratio", "effective_condition_number"]
    frame = measure(run, metrics, ["q_proj", CUMULATIVE], kinds=["weights", "updates"], window=0)
    assert set(frame.loc[frame["component"].str.endswith(CUMULATIVE), "kind"]) == {"updates"}
    rows = frame[(frame["layer"] == 0) & (frame["kind"] == "updates") & (frame["step"] == 6)]
    assert set(rows["reference_step"]) == {0}
    plain, factored = (
        rows[rows["component"] == f"self_attn.q_proj{end}"].set_index("metric") for end in ("", f".{CUMULATIVE}")
    )
    assert factored["value"].to_numpy() == pytest.approx(plain["value"].to_numpy(), rel=1e-3)
    expected = sum(EPS / 2 * _norms_of_factors(run, step) for step in (2, 4, 6))
    assert factored["tol"]["spectral_norm"] == pytest.approx(expected, rel=1e-9)
    assert factored["tol"]["spectral_norm"] < 0.1 * plain["tol"]["spectral_norm"]


def _norms_of_factors(run: Run, step: int) -> float:
    """||B||_F ||A||_2 + ||B||_2 ||A||_F of what was merged at a step."""
    left, right = (run.tensor(step, "weights", of(Q_PROJ)).double().numpy() for of in (names.merged_B, names.merged_A))
    return float(np.linalg.norm(left) * np.linalg.norm(right, 2) + np.linalg.norm(left, 2) * np.linalg.norm(right))


def test_a_restart_that_was_not_observed_leaves_its_windows_missing_and_is_said(tmp_path: Path) -> None:
    run = open_run(write_low_rank_run(tmp_path / "low", Plan(observed=(0, 1, 2, 3, 5, 6))).root)
    with pytest.warns(DamagedWarning) as caught:
        frame = measure(run, ["numerical_rank"], ["q_proj", CUMULATIVE], kinds=["updates"])
    assert [str(one.message) for one in caught] == [
        "step 5 is left out in part: between step 3 and step 5 factors were merged at a step that was not observed"
    ]
    status = frame.groupby(["component", "step"])["status"].first()
    assert status[f"self_attn.q_proj.{CUMULATIVE}"].to_dict() == {1: "ok", 2: "ok", 3: "ok", 5: "missing", 6: "ok"}
    assert set(status["self_attn.q_proj"]) == {"ok"}
    with pytest.raises(DamagedError, match="between step 0 and step 6 factors"):
        cumulative_lora_update(run, Q_PROJ, 0, 6)


def test_a_small_restart_is_not_overlooked() -> None:
    """Of a hundredth of the size of the others: seen where it is missing, and part of the sum where it is there."""
    draws = torch.Generator().manual_seed(0)
    one = Projection(torch.randn(48, 48, generator=draws), rank=4, scale=2.0, generator=draws)
    first = one.base.clone()
    merged = []
    for size in (1e-2, 1e-4, 1e-2):
        one.step(size)
        one.restart()
        assert one.merged is not None
        merged.append(linalg.FactoredMatrix(one.merged[1], one.merged[0]))
    assert explains(merged, first, one.base)
    assert not explains([merged[0], merged[2]], first, one.base)
    assert not explains(merged[:2], first, one.base)


def test_a_full_rank_start_has_no_update_through_factors(tmp_path: Path) -> None:
    """Nothing is wrong with such a run: rows are missing, and nothing is warned of."""
    run = open_run(write_low_rank_run(tmp_path / "warm", Plan(warm=2, restarts={4: 2, 6: None})).root)
    found = {
        window: measure(run, ["numerical_rank"], [CUMULATIVE], kinds=["updates"], window=window)
        .groupby("step")[["value", "status"]]
        .first()
        for window in ("previous", 2)
    }
    status = found["previous"]["status"].to_dict()
    assert status == {1: "missing", 2: "missing", 3: "ok", 4: "ok", 5: "ok", 6: "ok"}
    assert found[2]["value"].to_dict() == {3: 4, 4: 4, 5: 6, 6: 6}, "rank 2 from step 4 on"
    with pytest.raises(UserError, match="no weights of the module"):
        cumulative_lora_update(run, Q_PROJ, 0, 4)


def test_results_are_kept_by_every_step_within_the_window(tmp_path: Path) -> None:
    layout = write_low_rank_run(tmp_path / "low")

    def measured() -> pd.DataFrame:
        asked = {"steps": [6], "kinds": ["updates"], "window": 0, "cache": tmp_path / "cache"}
        return measure(open_run(layout.root), ["numerical_rank"], [CUMULATIVE], **asked)  # type: ignore[arg-type]

    whole = measured()
    assert set(whole["value"]) == {12.0}
    shutil.move(layout.snapshot(4), tmp_path / "aside")
    with pytest.warns(DamagedWarning, match="not observed"), pytest.raises(UserError, match="nothing to measure"):
        measured()
    shutil.move(tmp_path / "aside", layout.snapshot(4))
    pd.testing.assert_frame_equal(measured(), whole)


def test_factors_that_are_not_finite_are_said_to_be(tmp_path: Path, rewrite: Callable[..., None]) -> None:
    layout = write_low_rank_run(tmp_path / "low")
    rewrite(layout.snapshot(3) / SNAPSHOT_WEIGHTS, lambda old: old * torch.nan if old.shape == (48, 4) else old)
    frame = measure(open_run(layout.root), ["per"], ["q_proj." + CUMULATIVE], steps=[3], kinds=["updates"], window=0)
    assert set(frame["status"]) == {"non_finite"}
