"""Which rows of a table a figure shows, and the overview of a run."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
from matplotlib.text import Text
from pico_analyze import measure
from pico_analyze.plot import over_steps
from pico_analyze.plot.data import OVERVIEW, all_plot_data, display_name, plot_data
from pico_analyze.sources.run import Run
from pico_contract.errors import UserError


@pytest.fixture
def frame(run: Run) -> pd.DataFrame:
    return measure(run)


def test_subject_is_one_metric_of_one_kind_and_split(frame: pd.DataFrame) -> None:
    shown = plot_data(frame, "gini", "gradients", "train")
    assert set(shown.rows["split"]) == {"train"}
    assert set(shown.rows["metric"]) == {"gini"}
    assert (shown.stem, shown.quantity, shown.object) == ("gradients_train_gini", "Gini (index)", "gradients (train)")
    norm = plot_data(frame, "spectral_norm", "weights")
    assert (norm.stem, norm.quantity, norm.object) == ("weights_spectral_norm", "spectral norm", "weights")


def test_split_may_be_left_out_where_there_is_one(frame: pd.DataFrame) -> None:
    assert plot_data(frame, "cka", "activations").split == "val"
    with pytest.raises(UserError, match=r"gini of gradients for several splits \(train, val\): choose one"):
        plot_data(frame, "gini", "gradients")


def test_what_the_table_lacks_is_named(frame: pd.DataFrame) -> None:
    with pytest.raises(UserError, match='no giny of weights; did you mean "gini of weights"'):
        plot_data(frame, "giny", "weights")
    with pytest.raises(UserError, match="no gini of activations of split train"):
        plot_data(frame, "gini", "activations", "train")
    with pytest.raises(UserError, match='no metric "giny"; did you mean "gini"'):
        all_plot_data(frame, ["per", "giny"])


def test_one_table_of_two_runs_is_refused(frame: pd.DataFrame) -> None:
    both = pd.concat([frame, frame.assign(run="other")])
    with pytest.raises(UserError, match=r"several runs \(other, small\)"):
        plot_data(both, "per", "weights")


def test_what_moves_with_the_steps_is_said(run: Run) -> None:
    frame = measure(run, ["per", "cka"], ["v_proj"], kinds=["activations", "updates"], reference="previous")
    assert plot_data(frame, "cka", "activations").object == "activations (val), to the step before"
    assert plot_data(frame, "per", "updates").object == "updates, since the step before"
    frame = measure(run, ["per"], ["v_proj"], kinds=["updates"], window="first")
    assert plot_data(frame, "per", "updates").object == "updates, since step 0"


def test_several_references_are_a_matrix_of_steps(run: Run) -> None:
    both = pd.concat([measure(run, ["cka"], ["v_proj"], reference=reference) for reference in ("first", "last")])
    shown = plot_data(both, "cka", "activations")
    assert (shown.between, shown.object) == ("steps", "activations (val), between steps")
    assert plot_data(both[both["reference_step"] == 0], "cka", "activations").between is None


def test_layers_and_steps_in_one_table_are_refused(run: Run) -> None:
    layers = measure(run, ["cka"], ["v_proj"], reference="layers")
    assert plot_data(layers, "cka", "activations").object == "activations (val), between layers"
    with pytest.raises(UserError, match="cka between steps and between layers: choose one"):
        plot_data(pd.concat([layers, measure(run, ["cka"], ["v_proj"])]), "cka", "activations")


def test_another_run_is_named(run: Run, new_run: Callable[..., Run]) -> None:
    frame = measure(run, ["cka"], ["v_proj"], reference=new_run())
    assert plot_data(frame, "cka", "activations").object == "activations (val), to the same step of run new"
    with pytest.raises(UserError, match=r"several reference_runs \(new, small\)"):
        plot_data(pd.concat([frame, measure(run, ["cka"], ["v_proj"])]), "cka", "activations")


def test_by_default_the_overview_of_the_probe(frame: pd.DataFrame) -> None:
    shown = [(one.kind, one.metric, one.split) for one in all_plot_data(frame)]
    assert sorted(shown) == sorted((kind, metric, None if kind == "weights" else "val") for kind, metric in OVERVIEW)
    assert all_plot_data(frame[frame["metric"] == "gini"]) == []


def test_asked_metrics_of_every_kind_and_split(frame: pd.DataFrame) -> None:
    shown = {(one.kind, one.split) for one in all_plot_data(frame, ["per"])}
    assert shown == {("weights", None), ("gradients", "train"), ("gradients", "val"), ("activations", "val")}


def test_overview_has_a_labelled_panel_for_each(frame: pd.DataFrame) -> None:
    figure = over_steps.overview(frame)
    assert figure.get_suptitle() == "run small: mean over the modules of a layer"
    words = {" ".join(text.get_text().split()) for text in figure.findobj(Text)}
    assert {"weights", "activations (val), to step 2", "gradients (val)"} <= words
    assert {
        "PER (fraction of full rank)",
        "debiased CKA (similarity)",
        "Frobenius norm (nats per unit of weight)",
    } <= words
    values = frame[(frame["metric"] == "per") & (frame["kind"] == "weights") & frame["head"].isna()]
    mean = values[(values["layer"] == 1) & (values["step"] == 2)]["value"].mean()
    assert figure.axes[0].lines[1].get_ydata()[-1] == pytest.approx(mean)


def test_overview_of_nothing_is_a_mistake(frame: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="the table has none of per of weights"):
        over_steps.overview(frame[frame["metric"] == "gini"])


@pytest.mark.parametrize(
    ("metric", "words"),
    [("per", "PER"), ("effective_rank", "effective rank"), ("mine.metrics:row_sum", "row sum"), ("spread", "spread")],
)
def test_metrics_in_words(metric: str, words: str) -> None:
    assert display_name(metric) == words
