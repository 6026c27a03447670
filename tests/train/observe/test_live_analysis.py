"""The observer "analyze": its table is that of stored snapshots, whatever interrupts the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pico_analyze import live as analyze
from pico_analyze import measure, open_run, table
from pico_analyze.commands import report_run
from pico_analyze.commands.plot import plot_run
from pico_analyze.engine.damage import DamagedWarning
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_contract.observer import Observation, ObservedRun
from pico_train import train
from pico_train.log.metrics import read_metrics
from pico_train.observe.plugins import Observers
from pico_train.run import RunConfig

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

Tiny = Callable[..., RunConfig]
ALL = ["train.gradients", "train.microbatch_gradients", "val.gradients", "val.activations"]
CHOSEN = {
    "metrics": ["per", "frobenius_norm", "anisotropy", "gradient_noise_scale"],
    "components": ["v_proj", "ov_circuit"],
}
MODULES = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "ov")


def observe(every: int = 2, **options: Any) -> dict[str, Any]:
    return {"name": "analyze", "every": every, "options": {**CHOSEN, **options}}


def live_table(config: RunConfig) -> pd.DataFrame:
    """Both twins hold the same rows."""
    layout = config.layout.analysis("live")
    frame = table.read(layout.table)
    assert len(pd.read_csv(layout.table_csv)) == len(frame)
    assert not list(layout.parts.iterdir())
    return frame


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[RunConfig], None]]:
    """`killed(config)` trains until the checkpoint of step 8 is being written, and ends there as SIGKILL would: nothing
    is closed."""

    class Killed(Exception):
        pass

    def end(stage: str, path: Path) -> None:
        if stage == "before_rename" and "checkpoints/step_00000008" in str(path):
            raise Killed

    def until_killed(config: RunConfig) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(codec, "on_stage", end)
            patch.setattr(Observers, "close", lambda *given: None)
            with pytest.raises(Killed):
                train(config, quiet=True)

    return until_killed


def test_the_table_is_that_of_stored_snapshots(tiny: Tiny) -> None:
    """Every metric of one step, all kinds, a tied head: 1e-12 relative, for matrices go in other batches."""
    components = ["v_proj", "o_proj", "lm_head", "ov_circuit"]
    shared = {
        "train.micro_batch_size": 2,
        "train.steps": 4,
        "snapshot.kinds": ALL,
        "snapshot.modules": components[:3],
        "model.tie_word_embeddings": True,
        "observe": [{"name": "analyze", "every": 2, "options": {"components": components}}],
    }
    config = tiny(**shared, **{"snapshot.every": 2, "snapshot.early": False})
    train(config, quiet=True)
    found = live_table(config)
    metrics = list(found["metric"].unique())
    assert len(metrics) > 20
    expected = measure(open_run(config.layout.root), metrics, components)
    assert set(expected["kind"]) == {"weights", "gradients", "activations", "microbatch_gradients"}

    def ordered(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.sort_values(table.KEY, ignore_index=True)

    pd.testing.assert_frame_equal(ordered(found), ordered(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("components", [["lora_update"], ["q_proj.lora_update", "v_proj"]])
def test_low_rank_updates_are_measured_as_those_of_stored_snapshots(tiny: Tiny, components: list[str]) -> None:
    config = tiny(
        observe=[{"name": "analyze", "every": 2, "options": {"metrics": ["numerical_rank"], "components": components}}],
        **{"method.name": "relora", "method.options": {"rank": 3, "restart_every": 4}, "snapshot.kinds": []},
        **{"snapshot.every": 2, "snapshot.early": False},
    )
    train(config, quiet=True)
    found = live_table(config)
    expected = measure(open_run(config.layout.root), ["numerical_rank"], components)
    ordered = [frame.sort_values(table.KEY, ignore_index=True) for frame in (found, expected)]
    pd.testing.assert_frame_equal(*ordered)
    ranks = found[found["component"].str.endswith("lora_update")].groupby("step")["value"].max()
    assert ranks.loc[[2, 4, 6, 8]].tolist() == [3.0] * 4  # at 4 and 8 what the restart merged


def test_low_rank_updates_of_a_method_without_any_are_refused_before_it_trains(tiny: Tiny) -> None:
    config = tiny(observe=[observe(metrics=["per"], components=["lora_update"])])
    with pytest.raises(UserError, match=r"observe\.0\.options: nothing to measure"):
        train(config, quiet=True)
    assert not config.layout.root.exists()


def test_observing_changes_nothing(tiny: Tiny) -> None:
    """Bit-identical losses and weights with and without, and no raw tensors stored for it."""
    found = []
    for name, entries in (("off", []), ("on", [observe(1)])):
        config = tiny(name=name, observe=entries, **{"snapshot.every": 0})
        train(config, quiet=True)
        rows = [{**row, "tokens_per_second": None, "mfu": None} for row in read_metrics(config.layout.metrics)]
        found.append((rows, codec.read_tensors(config.layout.checkpoint(10) / "model.safetensors")))
    (before, weights), (after, observed) = found
    assert before == after
    assert all(torch.equal(weights[name], observed[name]) for name in weights)
    assert codec.listed_steps(config.layout.snapshots) == []
    assert sorted(live_table(config)["step"].unique()) == list(range(11))


@pytest.mark.parametrize("every", [1, 3])
def test_a_killed_run_that_was_continued_leaves_the_same_table(
    tiny: Tiny, killed: Callable[[RunConfig], None], every: int
) -> None:
    shared = {"snapshot.every": 0, "observe": [observe(every)]}
    whole = tiny(name="tiny", runs_dir=str(tiny().runs_dir / "whole"), **shared)
    train(whole, quiet=True)
    cut = tiny(name="tiny", runs_dir=str(whole.runs_dir.parent / "cut"), **shared)
    killed(cut)
    assert max(table.read(cut.layout.analysis("live").table)["step"]) > 4, "nothing to drop"
    train(cut, quiet=True)
    pd.testing.assert_frame_equal(live_table(cut), live_table(whole), check_exact=True)


def test_what_was_measured_beyond_the_resumed_step_is_dropped(tiny: Tiny, killed: Callable[[RunConfig], None]) -> None:
    """Measured at 5, 6 and 7 before the kill; continued from 4 less often."""
    killed(tiny(**{"snapshot.every": 0, "observe": [observe(1)]}))
    config = tiny(observe=[observe(5)])
    train(config, quiet=True)
    assert sorted(live_table(config)["step"].unique()) == [0, 1, 2, 3, 4, 5, 10]


def test_what_was_measured_is_damaged_and_left_out(tiny: Tiny, killed: Callable[[RunConfig], None]) -> None:
    config = tiny(**{"snapshot.every": 0, "observe": [observe(2)]})
    killed(config)
    path = config.layout.analysis("live").table
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(DamagedWarning, match=r"left out in part: .*table\.parquet is not a measurement table"):
        assert train(config, quiet=True).status == "finished"
    assert sorted(live_table(config)["step"].unique()) == [4, 6, 8, 10]


def test_figures_and_a_report_are_made_of_it(tiny: Tiny) -> None:
    options = {"figures": {"metrics": ["per"]}, "components": ["v_proj"], "kinds": ["weights", "activations"]}
    config = tiny(**{"snapshot.every": 0, "observe": [observe(5, **options)]})
    train(config, quiet=True)
    figures = plot_run(config.layout.root, "live", ["per"])
    assert {path.name for path in figures} >= {"weights_per_lines.png", "activations_val_per_lines.png"}
    report = report_run(config.layout.root, "live").read_text()
    assert "anisotropy" in report
    assert "finished at step 10 of 10" in report


def run_of(root: Path, *held: tuple[str, str | None]) -> ObservedRun:
    return ObservedRun(
        RunLayout(root),
        "run",
        {"num_attention_heads": 4, "num_key_value_heads": 2},
        MODULES,
        (("weights", None), *held),
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"metrcs": ["per"]}, r'analyze: unknown key "metrcs" at the top level; did you mean "metrics"\?'),
        ({"metrics": "per"}, r"analyze: metrics: should be a list"),
        ({"metrics": ["per", "gni"]}, r'there is no metric "gni"; did you mean "gini"\?'),
        ({"metrics": ["per", "cka"]}, r'metrics: "cka" compares two steps, of which only one is there'),
        ({"kinds": ["weight"]}, r"analyze: kinds\.0: should be 'weights'"),
        ({"kinds": ["gradients"]}, r"kinds: the run observes no gradients \(snapshot\.kinds\)"),
        ({"kinds": ["updates"]}, r"kinds: updates are differences between two steps"),
        ({"components": ["v_prj"]}, r'the pattern "v_prj" matches no module; the nearest names are: v_proj'),
        ({"components": ["ov_circut"]}, r'there is no component "ov_circut"; did you mean "ov_circuit"\?'),
        ({"steps": [1]}, r'"steps" is not an option while a run trains; choose from: name, metrics'),
        ({"run": "elsewhere"}, r'"run" is not an option'),
        ({"metrics": ["anisotropy"], "kinds": ["weights"]}, r"nothing to measure"),
        ({"name": "../up"}, r"analyze: name: string should match"),
    ],
)
def test_options_that_cannot_be_measured_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        analyze.observer(run_of(tmp_path / "run", ("activations", "val")), options)
    assert not (tmp_path / "run").exists()


def test_a_mistake_ends_the_command_before_it_trains(tiny: Tiny) -> None:
    config = tiny(observe=[observe(metrics=["pre"])])
    with pytest.raises(UserError, match=r'^a\.yaml: observe\.0\.options: there is no metric "pre"; did you mean "per"'):
        train(config, source="a.yaml", quiet=True)
    assert not config.layout.root.exists()


def test_rows_are_written_about_as_often_however_long_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row about nine times in all, and the table is never more than an eighth behind."""
    live = analyze.observer(run_of(tmp_path), {"metrics": ["per"], "components": ["v_proj"], "name": "often"})
    live.resume(0)
    written, behind = [], []
    original = table.write
    monkeypatch.setattr(table, "write", lambda frame, layout: written.append(len(frame)) or original(frame, layout))
    weights = {f"{module}.weight": torch.eye(8) for module in MODULES}
    layout = RunLayout(tmp_path).analysis("often")
    for step in range(40):
        live.observe(Observation(step, 10 * step, {("weights", None): weights}))
        behind.append(step + 1 - table.read(layout.table)["step"].nunique())
    live.close()
    assert max(late / (step + 1) for step, late in enumerate(behind)) <= 1 / 8
    assert sum(written) <= 9 * 40 * 2
    assert table.read(layout.table)["step"].tolist() == [step for step in range(40) for _ in range(2)]
