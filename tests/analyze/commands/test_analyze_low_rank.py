"""inspect, audit, run, report and figures on a low-rank run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pico_analyze import measure, open_run
from pico_analyze.audit.checks import audit
from pico_analyze.audit.trajectory import Moves
from pico_analyze.commands import run_analysis
from pico_analyze.config import checked
from pico_analyze.engine.spectra import spectra
from pico_analyze.plot import over_steps
from pico_analyze.plot.data import plot_data
from pico_analyze.report import run as report
from pico_analyze.table import read
from pico_contract import codec, names
from pico_contract.layout import SNAPSHOT_WEIGHTS, RunLayout

from ...support.low_rank_run import Q_PROJ, Plan, write_low_rank_run


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """Full rank up to step 1, one restart of a large update at step 5, after which ranks are 2."""
    plan = Plan(observed=tuple(range(9)), restarts={5: 2}, warm=1, size=3e-2, checkpoints=(0, 8))
    return write_low_rank_run(tmp_path_factory.mktemp("relora") / "low", plan)


def test_a_restart_is_no_jump_and_what_low_rank_modules_have_no_finding(layout: RunLayout) -> None:
    """Although the base stands still but for the restart, which moves it far."""
    assert audit(layout.root).findings == []
    moves = Moves()
    for step in range(1, 9):
        stored = codec.read_tensors(layout.snapshot(step) / SNAPSHOT_WEIGHTS)
        moves.add(step, stored[names.base(Q_PROJ)])
    assert list(moves.odd()) == [5]


def test_the_default_analysis_has_the_update_in_table_and_report(layout: RunLayout, tmp_path: Path) -> None:
    asked = {"metrics": ["numerical_rank"], "kinds": ["weights"], "figures": {"metrics": []}}
    config = checked({"run": str(layout.root), "out": str(tmp_path), **asked}, "test")
    paths = {path.name: path for path in run_analysis(config, "test", lambda _: None)}
    frame = read(paths["table.parquet"])
    assert "self_attn.q_proj.lora_update" in set(frame["component"])
    text = paths["report.html"].read_text(encoding="utf-8")
    assert "<dt>lora_update</dt><dd>The scaled product of a projection&#39;s low-rank factors" in text
    assert "cumulative_lora_update" not in text


def test_a_report_without_circuits_explains_none(layout: RunLayout) -> None:
    run = open_run(layout.root)
    assert report.circuits(measure(run, ["per"], ["*_proj"], kinds=["weights"])) == []
    assert "<dt>lora_update</dt>" not in report.render(run, measure(run, ["per"], ["*_proj"], kinds=["weights"]), [])


def test_the_overview_is_the_mean_over_plain_modules(layout: RunLayout) -> None:
    """The rank of an update would pull the line of the weights down."""
    run = open_run(layout.root)
    drawn = [
        over_steps.overview(measure(run, ["per"], of, kinds=["weights"]))
        for of in (["*_proj"], ["*_proj", "lora_update"])
    ]
    first, second = ([line.get_ydata().tolist() for line in figure.axes[0].lines] for figure in drawn)
    assert first == second
    assert len(first) == 2


def test_panels_of_long_names_do_not_run_into_each_other(layout: RunLayout) -> None:
    run = open_run(layout.root)
    frame = measure(run, ["numerical_rank"], ["cumulative_lora_update"], kinds=["updates"], window=1)
    figure = over_steps.lines(plot_data(frame, "numerical_rank", "updates"))
    figure.draw_without_rendering()
    one, two = (axes.title.get_window_extent() for axes in figure.axes[:2])
    assert one.x1 < two.x0


def test_spectra_leave_out_steps_before_the_factors(layout: RunLayout) -> None:
    frame = spectra(open_run(layout.root), layers=[0], steps=[0, 1, 3, 5, 7])
    of = frame[frame["component"] == "self_attn.q_proj.lora_update"]
    assert of.groupby("step").size().to_dict() == {1: 4, 3: 4, 5: 4, 7: 2}
    assert set(frame.loc[frame["component"] == "self_attn.q_proj", "step"]) == {0, 1, 3, 5, 7}


def test_similarities_between_updates_are_those_of_the_dense_products(layout: RunLayout) -> None:
    """Of unequal ranks too: step 6, of rank 2, against what the restart at step 5 merged, of rank 4."""
    frame = measure(open_run(layout.root), ["cosine"], ["q_proj.lora_update"], kinds=["weights"], reference="previous")
    for row in frame[frame["step"] > 2].to_dict("records"):
        one, other = (dense(layout, row["module"], step) for step in (row["step"], row["reference_step"]))
        expected = (one * other).sum() / (one.norm() * other.norm())
        assert row["value"] == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


def dense(layout: RunLayout, module: str, step: int) -> torch.Tensor:
    of = {name: one.double() for name, one in codec.read_tensors(layout.snapshot(step) / SNAPSHOT_WEIGHTS).items()}
    if names.merged_B(module) in of:
        return of[names.merged_B(module)] @ of[names.merged_A(module)]
    return of[names.lora_scale(module)] * (of[names.lora_B(module)] @ of[names.lora_A(module)])
