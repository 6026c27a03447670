"""measure(): what is in the table, what each matrix costs, and what is said of what cannot be measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pico_analyze import measure
from pico_analyze.metrics import METRICS
from pico_analyze.sources.run import Run
from pico_analyze.table import KEY, SCHEMA
from pico_contract.errors import UserError

V_PROJ = "model.layers.0.self_attn.v_proj"
SPECTRAL = [name for name, metric in METRICS.items() if metric.needs == "spectrum"]
OF_HELD = [name for name, m in METRICS.items() if {"weights", "gradients", "activations"} & set(m.kinds)]
BASES = ["svcca", "pwcca", "procrustes", "subspace_overlap"]


def spread(x: torch.Tensor) -> float:
    """A user's own metric."""
    return float(x.max() - x.min())


def only(frame: pd.DataFrame, **of: Any) -> pd.Series:
    """The one row that `of` describes."""
    for column, value in of.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_everything_has_the_declared_schema_and_one_row_a_number(run: Run) -> None:
    frame = measure(run)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == SCHEMA
    assert not frame.duplicated(KEY).any()
    assert set(frame["metric"]) == set(OF_HELD)
    assert set(frame["status"]) == {"ok", "rank_deficient", "too_few", "n_less_than_d", "not_unique"}
    assert frame.loc[frame["status"] == "ok", "value"].notna().all()
    assert frame.loc[frame["status"] != "ok", "value"].isna().all()
    assert set(frame.loc[frame["status"] == "rank_deficient", "component"]) == {"ov_circuit"}


def test_two_norms_on_two_splits_are_all_there(run: Run) -> None:
    metrics = ["frobenius_norm", "nuclear_norm"]
    frame = measure(run, metrics, ["v_proj", "up_proj"], steps=run.steps, kinds=["gradients"])
    assert len(frame) == 3 * 2 * 2 * 2 * 2  # steps, splits, metrics, modules, layers
    for _, row in frame.iterrows():
        if (row["step"], row["split"]) == (2, "train"):
            assert row["status"] == "missing"
            continue
        gradient = run.tensor(row["step"], "gradients", row["module"], row["split"]).double().numpy()
        expected = np.linalg.norm(gradient, "fro" if row["metric"] == "frobenius_norm" else "nuc")
        assert row["value"] == pytest.approx(expected)


def test_without_steps_each_kind_is_measured_where_it_is_held(run: Run) -> None:
    frame = measure(run, ["per"], ["v_proj"])
    steps = {name: sorted(set(rows["step"])) for name, rows in frame.groupby(frame["split"].fillna("weights"))}
    assert steps == {"weights": [0, 1, 2], "val": [0, 1, 2], "train": [0, 1]}
    assert set(frame["status"]) == {"ok"}


def test_columns_say_what_was_measured(run: Run) -> None:
    frame = measure(run, ["per", "spectral_norm", "gini", "cka"], ["v_proj", "ov_circuit"])
    gradient = only(frame, kind="gradients", split="val", step=1, module=V_PROJ, metric="spectral_norm")
    expected = {
        "run": "small",
        "tokens": 100,
        "component": "self_attn.v_proj",
        "layer": 0,
        "unit": "nats per unit of weight",
        "n": 8,
        "d": 16,
    }
    assert gradient[list(expected)].to_dict() == expected
    assert gradient[["dtype", "variant"]].tolist() == ["float32", "{}"]
    size = float(run.tensor(1, "gradients", V_PROJ, "val").double().norm())
    assert gradient["tol"] == pytest.approx(2**-24 * size, rel=1e-6)
    assert gradient[["head", "reference_step", "reference_run"]].isna().all()
    similarity = only(frame, step=1, layer=0, head=2, metric="cka")
    assert similarity[["reference_run", "reference_step", "reference_module"]].tolist() == [
        "small",
        2,
        "model.layers.0.self_attn",
    ]
    assert similarity[["component", "kind", "split", "n", "d"]].tolist() == ["ov_circuit", "activations", "val", 12, 16]
    weight = only(frame, kind="weights", step=0, module=V_PROJ, metric="spectral_norm")
    assert weight["unit"] == "1"
    assert weight["tokens"] == 0
    assert pd.isna(weight["split"])
    assert only(frame, kind="weights", step=0, module=V_PROJ, metric="per")["unit"] == "fraction of full rank"
    assert frame.loc[(frame["component"] == "ov_circuit") & (frame["metric"] == "gini")].empty


def test_range_of_steps_ends_at_its_end(new_run: Callable[..., Run]) -> None:
    frame = measure(
        new_run(steps=tuple(range(0, 131, 10))),
        ["per"],
        ["v_proj"],
        steps={"start": 0, "end": 100, "step": 30},
        kinds=["weights"],
    )
    assert sorted(frame["step"].unique()) == [0, 30, 60, 90]


@pytest.mark.parametrize("metrics", [["per"], SPECTRAL, [name for name in METRICS if name not in BASES]])
def test_each_matrix_is_decomposed_once(run: Run, monkeypatch: pytest.MonkeyPatch, metrics: list[str]) -> None:
    """7 projections, 2 layers: weights at 3 steps, gradients at 3 + 2, activations at 3; 4 heads' circuits twice 3.

    A circuit costs two small decompositions more, for the norms of its factors, on which its tolerance depends.
    """
    decomposed: list[int] = []
    for name in ("svdvals", "svd", "eigvalsh", "eigh", "matrix_norm", "matrix_rank", "cond"):
        original = getattr(torch.linalg, name)

        def counted(x: torch.Tensor, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            decomposed.append(math.prod(x.shape[:-2]))
            return original(x, *args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, counted)
    measure(run, metrics)
    assert sum(decomposed) == 7 * 2 * (3 + 5 + 3) + 3 * 2 * 4 * (3 + 3)


def test_a_sample_has_one_basis_for_all_that_compare_subspaces(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """14 projections and 8 heads at 3 steps, and again at most as the reference."""
    samples: list[torch.Tensor] = []
    original = torch.linalg.svd

    def counted(x: torch.Tensor, **kwargs: Any) -> Any:
        if len(x) == 12:  # rows; what CCA decomposes of a pair is smaller
            samples.append(x)
        return original(x, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    frame = measure(run, BASES)
    assert set(frame["metric"]) == set(BASES)
    assert len(samples) <= 22 * (3 + 1)


def test_metrics_of_entries_need_no_decomposition(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.linalg, "svdvals")
    assert len(measure(run, ["max_abs", "cka"])) > 0


def test_one_metric_alone_gives_the_rows_that_all_together_give(run: Run) -> None:
    everything = measure(run)
    for name in OF_HELD:
        rows = everything[everything["metric"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(measure(run, [name]), rows, check_exact=True)


def test_progress_counts_up_to_all(run: Run) -> None:
    seen: list[tuple[int, int]] = []
    measure(run, ["per"], ["v_proj", "ov_circuit"], kinds=["weights"], progress=lambda *now: seen.append(now))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("reference", "step"), [("first", 0), ("last", 2), (1, 1)])
def test_similarity_to_the_reference_step_itself_is_1(run: Run, reference: str | int, step: int) -> None:
    frame = measure(run, ["cka", "cka_debiased"], ["v_proj", "ov_circuit"], reference=reference)
    assert set(frame["reference_step"]) == {step}
    assert frame.loc[frame["step"] == step, "value"].to_numpy(float) == pytest.approx(1)
    assert frame.loc[frame["step"] != step, "value"].max() < 0.95


def test_tied_head_is_measured_as_the_embedding(run: Run) -> None:
    frame = measure(run, ["per", "max_abs"], ["lm_head", "embed_tokens"], kinds=["weights"])
    at_2 = frame[frame["step"] == 2].pivot(index="metric", columns="module", values="value")
    assert (at_2["lm_head"] == at_2["model.embed_tokens"]).all()
    assert set(frame.loc[frame["step"] < 2, "status"]) == {"missing"}
    assert frame["layer"].isna().all()


def test_vectors_have_entries_and_no_spectrum(run: Run) -> None:
    frame = measure(run, ["per", "max_abs", "gini"], ["model.norm"], kinds=["weights"])
    assert set(frame["metric"]) == {"max_abs", "gini"}
    assert only(frame, step=2, metric="gini")[["n", "d"]].tolist() == [16, 1]


def test_a_users_function_is_measured_on_entries(run: Run) -> None:
    frame = measure(run, [spread, "max_abs"], ["v_proj", "ov_circuit"], kinds=["weights"])
    assert set(frame.loc[frame["metric"] == "spread", "component"]) == {"self_attn.v_proj"}
    row = only(frame, metric="spread", step=1, module=V_PROJ)
    weight = run.tensor(1, "weights", V_PROJ).double()
    assert row["value"] == pytest.approx(float(weight.max() - weight.min()))
    assert pd.isna(row["unit"])


def test_a_users_function_is_found_by_module_and_attribute(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "our_metrics.py").write_text("def rows(x):\n    return len(x)\n")
    monkeypatch.syspath_prepend(tmp_path)
    frame = measure(run, ["our_metrics:rows"], ["v_proj"], kinds=["activations"])
    assert frame["metric"].unique().tolist() == ["our_metrics:rows"]
    assert set(frame["value"]) == {12.0}


@pytest.mark.parametrize("result", [None, "text", torch.ones(2)])
def test_a_users_function_that_gives_no_number_is_named(run: Run, result: object) -> None:
    def wrong(x: torch.Tensor) -> object:
        return result

    with pytest.raises(UserError, match=f'"wrong" should give a number but gave a {type(result).__name__}'):
        measure(run, [wrong], ["v_proj"], kinds=["weights"])


def test_a_users_number_that_is_not_finite_is_null(run: Run) -> None:
    def undefined(x: torch.Tensor) -> float:
        return math.nan

    frame = measure(run, [undefined], ["v_proj"], kinds=["weights"])
    assert set(frame["status"]) == {"non_finite"}
    assert frame["value"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"metrics": ["giny"]}, 'no metric "giny"; did you mean "gini"?'),
        ({"metrics": ["no_such_module:fn"]}, 'the metric "no_such_module:fn" cannot be loaded'),
        ({"metrics": ["math:no_such"]}, 'the metric "math:no_such" cannot be loaded'),
        ({"components": ["ov_circut"]}, 'no component "ov_circut"; did you mean "ov_circuit"?'),
        ({"components": ["v_prj"]}, 'the pattern "v_prj" matches no module; the nearest names are: v_proj'),
        ({"kinds": ["gradient"]}, 'no kind "gradient"; did you mean "gradients"?'),
        ({"splits": ["valid"]}, 'no split "valid"; did you mean "val"?'),
        ({"steps": [5]}, "no step 5; the nearest is 2"),
        ({"reference": 9}, "the reference step 9 is not in the run; the nearest is 2"),
        ({"reference": "middle"}, 'should be "first", "last", "previous", "all", "layers" or a step but is "middle"'),
        ({"metrics": ["cka"], "kinds": ["weights"]}, "nothing to measure"),
        ({"components": ["ov_circuit"], "kinds": ["gradients"]}, "nothing to measure"),
        ({"kinds": ["activations"], "splits": ["train"]}, "no intact activations (of split train)"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(run: Run, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        measure(run, **arguments)
    assert sentence in str(error.value)


def test_two_metrics_of_one_name_are_refused(run: Run) -> None:
    def per(x: torch.Tensor) -> float:
        return 0.0

    with pytest.raises(UserError, match='two different metrics are called "per"'):
        measure(run, [per])


@pytest.mark.parametrize("what", ["metrics", "components", "steps", "kinds", "splits"])
def test_an_empty_list_is_a_mistake_and_not_everything(run: Run, what: str) -> None:
    with pytest.raises(UserError, match=f"^{what} is empty: name some"):
        measure(run, **{what: []})
