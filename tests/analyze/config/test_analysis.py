"""Configuration of an analysis: defaults < file < overrides, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pico_analyze.config import AnalysisConfig, StepRange, load, to_yaml
from pico_contract.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "analysis.yaml"
    path.write_text("run: runs/small\nmetrics: [per, gini]\nsteps: {start: 0, end: 100, step: 30}\n")
    return path


def test_a_run_directory_is_its_own_default_configuration(tmp_path: Path) -> None:
    assert load(tmp_path) == AnalysisConfig(run=tmp_path)


def test_overrides_win_over_the_file_which_wins_over_defaults(file: Path) -> None:
    config = load(file, ["metrics=[cka]", "figures.formats=[svg, pdf]", "reference=first", "name=mine"])
    assert config.run == Path("runs/small")
    assert config.metrics == ["cka"]
    assert config.steps == StepRange(start=0, end=100, step=30)
    assert config.figures.formats == ["svg", "pdf"]
    assert (config.reference, config.name, config.kinds) == ("first", "mine", None)


@pytest.mark.parametrize(
    ("override", "steps"), [("steps=[0, 5]", [0, 5]), ("steps={step: 10}", StepRange(step=10)), ("steps=null", None)]
)
def test_steps_are_a_list_or_a_range(file: Path, override: str, steps: Any) -> None:
    assert load(file, [override]).steps == steps


def test_an_override_changes_one_key_of_a_range(file: Path) -> None:
    assert load(file, ["steps.end=60"]).steps == StepRange(start=0, end=60, step=30)


@pytest.mark.parametrize(("text", "reference"), [("first", "first"), ("previous", "previous"), ("0", 0), ("120", 120)])
def test_reference_is_a_step_or_an_end(file: Path, text: str, reference: str | int) -> None:
    config = load(file, [f"reference={text}", f"window={text}"])
    assert (config.reference, config.window) == (reference, reference)


def test_the_resolved_configuration_repeats_itself(file: Path, tmp_path: Path) -> None:
    config = load(file, ["figures.heads=true", "components=[ov_circuit, layers.*.attention.v_proj]"])
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load(again) == config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("run: x\nmetrcs: [per]", 'unknown key "metrcs" at the top level; did you mean "metrics"?'),
        ("run: x\nlist: [per]", 'unknown key "list" at the top level; did you mean '),
        ("run: x\nrange: {end: 3}", 'unknown key "range" at the top level; '),
        ("run: x\nsteps: {strt: 0}", 'unknown key "steps.strt" in section "steps"; did you mean "start"?'),
        (
            "run: x\nfigures: {format: [png]}",
            'unknown key "figures.format" in section "figures"; did you mean "formats"?',
        ),
        ("metrics: [per]", 'the key "run" is missing'),
        ("run: x\nsteps: {end: -1}", "steps.end: should be greater than or equal to 0 (it is -1)"),
        ("run: x\nsteps: [soon]", "steps.0: should be a valid integer"),
        (
            "run: x\nkinds: [weight]",
            "kinds.0: should be 'weights', 'gradients', 'activations', 'microbatch_gradients' or 'updates' (it",
        ),
        (
            "run: x\nreference: middle",
            'reference: should be one of first, last, previous, all, same, or a step (it is "middle")',
        ),
        ("run: x\nreference: al", 'or a step (it is "al", did you mean "all"?)'),
        ("run: x\nreference: true", "or a step (it is true)"),
        ("run: x\nwindow: middle", 'window: should be "first", "last", "previous" or a step (it is "middle")'),
        ("run: x\nacross: layer", "across: should be 'layers' (it is \"layer\")"),
        ("run: x\nnull: permute", "null: should be 'permutation' (it is \"permute\")"),
        ("run: x\nnull_draws: 1", "null_draws: should be greater than or equal to 2 (it is 1)"),
        ("run: x\nname: a/b", "name: string should match pattern"),
        ("run: x\nmetrics: per", 'metrics: should be a list (it is "per")'),
        ("run: x\nrun: y", 'the key "run" is given twice'),
        ("- run", "should hold a mapping of keys to values but holds a list"),
        ("", 'the key "run" is missing'),
        ("run: [", "is not valid YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_that_names_it(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "analysis.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load(path)
    assert sentence in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("metrcs=[per]", 'the command line: unknown key "metrcs" at the top level; did you mean "metrics"?'),
        ("steps.strt=3", 'the command line: unknown key "steps.strt" in section "steps"; did you mean "start"?'),
        ("kinds=[weight]", "the command line: kinds.0: should be 'weights'"),
        ("steps=[1, x]", "the command line: steps.1: should be a valid integer"),
        ("steps={strt: 3}", 'the command line: unknown key "steps.strt" in section "steps"; did you mean "start"?'),
        ("name.x=3", 'the override "name.x=3" goes below "name", which is a value'),
        ("metrics", '"metrics" is not an override: write key=value'),
        ("=per", '"=per" is not an override'),
        ("metrics=[per", 'the value of the override "metrics=[per" is not valid YAML'),
    ],
)
def test_a_mistake_in_an_override_is_blamed_on_the_command_line(file: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load(file, ["name=mine", override])
    assert sentence in str(error.value)


def test_no_such_file_names_the_nearest(file: Path) -> None:
    with pytest.raises(UserError, match=r'neither a run nor a configuration file .*; did you mean "analysis\.yaml"'):
        load(file.with_name("anlysis.yaml"))
