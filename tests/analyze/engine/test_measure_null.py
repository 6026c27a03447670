"""`null_draws` as an argument of `measure`: columns, seeds, calibration, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pico_analyze import measure
from pico_analyze.metrics import METRICS
from pico_analyze.metrics.null import seed_of
from pico_analyze.report.run import measured
from pico_analyze.sources.run import Run

COLUMNS = ["null_mean", "null_sd", "p"]
ASKED: dict[str, Any] = {"kinds": ["activations"]}
PAIRS = [name for name, metric in METRICS.items() if metric.arity == 2 and metric.needs == "sample"]


def cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def test_columns_are_those_of_the_definition(run: Run) -> None:
    frame = measure(run, ["cka"], ["q_proj"], **ASKED, null_draws=19)
    row = frame[(frame["step"] == 1) & (frame["layer"] == 0)].iloc[0]
    x, y = (run.tensor(step, "activations", row["module"]).double().numpy() for step in (1, 2))
    seed = seed_of("small", 1, "small", 2, 0, "activations", "val", "self_attn.q_proj", 0, None)
    draw = torch.Generator().manual_seed(seed)
    values = [cka(x, y[torch.randperm(12, generator=draw).numpy()]) for _ in range(19)]
    assert row["null_mean"] == pytest.approx(np.mean(values), rel=1e-9)
    assert row["null_sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert row["p"] == (1 + sum(value >= row["value"] for value in values)) / 20


def test_every_similarity_of_samples_that_has_a_value_and_nothing_else(run: Run) -> None:
    asked = [*PAIRS, "cosine", "relative_distance", "per"]
    frame = measure(run, asked, ["k_proj", "ov_circuit"], **ASKED, null_draws=2)
    has = frame["p"].notna()
    assert frame["null_mean"].notna().equals(has)
    expected = frame["metric"].isin(PAIRS) & frame["value"].notna()
    certain = frame["metric"] != "pwcca"  # whose permuted correlations may repeat: then no draw has a value
    assert has[certain].equals(expected[certain])
    assert not has[~expected].any()
    assert set(frame.loc[has, "metric"]) >= {"cka", "cka_debiased", "cka_rbf", "procrustes", "mutual_knn"}
    assert measure(run, asked, ["k_proj"], kinds=["activations"])[COLUMNS].isna().all(axis=None)


def test_p_is_anything_on_independent_samples_and_small_on_dependent_ones(new_run: Callable[..., Run]) -> None:
    """p of independent samples is uniform on multiples of 1/20: of 140 the mean is within 0.5 and 5 sd of it."""
    run = new_run(steps=(0, 1, 2, 3, 4))
    p = measure(run, ["cka"], ["*_proj"], **ASKED, null_draws=19, reference="all")["p"]
    assert len(p) == 14 * 10
    assert abs(p.mean() - 0.525) < 5 * np.sqrt(1 / 12 / 140)
    assert (p <= 0.05).mean() < 0.05 + 5 * np.sqrt(0.05 * 0.95 / 140)
    assert p.max() > 0.9
    same = measure(run, ["cka", "mutual_knn"], ["q_proj"], **ASKED, null_draws=19, reference=run)
    assert set(same["p"]) == {1 / 20}


def test_the_same_on_any_executor_in_any_order_and_from_the_cache(run: Run, tmp_path: Path) -> None:
    asked: dict[str, Any] = {**ASKED, "null_draws": 5, "reference": "all"}
    expected = measure(run, ["cka"], ["q_proj", "ov_circuit"], **asked)
    with ThreadPoolExecutor(3) as pool:
        found = measure(run, ["cka", "procrustes"], ["ov_circuit", "q_proj"], **asked, executor=pool)
    found = found[found["metric"] == "cka"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)
    part = measure(run, ["cka"], ["q_proj"], steps=[0, 2], **asked, cache=tmp_path)
    assert (part["p"].notna()).all()
    for _ in range(2):
        kept = measure(run, ["cka"], ["q_proj", "ov_circuit"], **asked, cache=tmp_path)
        pd.testing.assert_frame_equal(kept, expected, rtol=1e-12)


def test_other_draws_or_none_are_other_results(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"metrics": ["cka"], "components": ["q_proj"], "kinds": ["activations"], "cache": tmp_path}
    for draws in (0, 9, 4):
        measure(run, **asked, null_draws=draws)
    monkeypatch.delattr(Run, "tensor")
    for draws, parts in ((0, None), (9, 10), (4, 5)):
        p = measure(run, **asked, null_draws=draws)["p"]
        assert p.isna().all() if parts is None else np.allclose(p * parts, (p * parts).round())


def test_the_report_says_how_many_stand_out(run: Run) -> None:
    frame = measure(run, ["cka"], ["q_proj"], **ASKED, null_draws=19, reference=run)
    assert dict(measured(frame))["null"].startswith("of 6 similarities 6 have p at most 0.05")
    assert "null" not in dict(measured(measure(run, ["cka"], ["q_proj"])))
