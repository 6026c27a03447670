"""Configurations of pico-analyze 1.x: recognised by their shape, measured as they are, each difference said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from pico_analyze.commands import run_analysis
from pico_analyze.config import load
from pico_analyze.sources.run import Run
from pico_analyze.table import KEY, read
from pico_contract.errors import UserError
from pico_contract.layout import AnalysisLayout, RunLayout

from ...support import pico_v1_numbers
from ...support.command_line import Command
from ...support.pico_v1_numbers import EPS, Number, group_of, key_of, relative

OV = {"output_layer": "attention.o_proj", "value_layer": "attention.v_proj"}
W_2 = {"component_name": "simple", "data_type": "gradients", "layer_suffixes": "swiglu.w_2", "layers": [0, 1]}
CIRCUIT = {"component_name": "ov_circuit", "data_type": "activations", "layer_suffixes": OV, "layers": [1]}


def metric(name: str = "per", split: str = "val", components: list[Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {"metric_name": name, "data_split": split, "components": components or [W_2], **keys}


def whole(*metrics: Any, steps: Any = (0, 1, 2), **keys: Any) -> dict[str, Any]:
    return {"analysis_name": "old", "metrics": list(metrics), "steps": list(steps), **keys}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def into(raw: Any) -> Path:
        path = tmp_path / "OLD.yaml"
        path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
        return path

    return into


Write = Callable[[Any], Path]


@pytest.fixture
def command(command: Command) -> Command:
    """A command that draws no figures."""
    return lambda *arguments: command(*arguments, "figures.metrics=[]")


def test_entries_become_parts_and_what_is_of_the_same_matrices_is_measured_together(write: Write) -> None:
    weights = {**W_2, "data_type": "weights", "layers": [1]}
    file = write(
        whole(
            metric("norm", norm_type="inf", components=[weights, W_2, CIRCUIT]),
            metric("gini", components=[weights], split="train"),
            metric("cka", components=[CIRCUIT], target_checkpoint=0),
            metric("per", components=[{**CIRCUIT, "data_type": "gradients"}]),
        )
    )
    config = load(file, run=Path("there"))
    heads, joined = (f"model.layers.1.self_attn.ov_circuit{form}" for form in ("", "_joined"))
    changes = [f"model.layers.1.self_attn.ov_induced_change{form}" for form in ("", "_joined")]
    down = [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]
    found = [(p.metrics, p.components, p.kinds, p.splits, p.reference) for p in config.parts or ()]
    assert found == [
        (["max_abs", "gini"], [down[1]], ["weights"], None, None),
        (["max_abs"], down, ["gradients"], ["val"], None),
        (["max_abs"], [heads, joined], ["activations"], ["val"], None),
        (["cka"], [heads, joined], ["activations"], ["val"], 0),
        (["per"], changes, ["gradients"], ["val"], None),
    ]
    assert (config.name, config.run, config.dense_circuits) == ("old", Path("there"), True)
    assert config.steps.model_dump(exclude_none=True) == {"start": 0, "among": [0, 1, 2]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"analysis_nam": 1}, 'unknown key "analysis_nam" at the top level; did you mean "analysis_name"?'),
        (
            {"monitoring": {"output": 1}},
            'unknown key "monitoring.output" in section "monitoring"; did you mean "output_dir"?',
        ),
        ({"metrics": [{**metric(), "split": "val"}]}, 'in section "metrics.0"; did you mean "data_split"?'),
        ({"metrics": [metric(components=[{**W_2, "layer": 0}])]}, 'key "metrics.0.components.0.layer" in section '),
        ({"metrics": [metric("pre")]}, "metrics.0.metric_name: should be 'cka', 'condition_number', "),
        ({"metrics": [metric(), metric(split="test")]}, "metrics.1.data_split: should be 'train' or 'val' ("),
        ({"metrics": [metric("norm")]}, 'metrics.0: norm needs the key "norm_type"'),
        ({"metrics": [metric("per", norm_type="inf")]}, 'metrics.0: per has no key "norm_type"'),
        ({"metrics": [metric("cka", components=[CIRCUIT])]}, 'metrics.0: cka needs the key "target_checkpoint"'),
        ({"metrics": [metric("cka", target_checkpoint=1)]}, "0.components.0: cka compares activations, not grad"),
        ({"metrics": [metric(components=[{**W_2, "layer_suffixes": OV}])]}, "should be the name of one module"),
        ({"metrics": [metric(components=[{**CIRCUIT, "layer_suffixes": "v"}])]}, "has output_layer attention.o_proj"),
        ({"metrics": []}, "metrics: list should have at least 1 item"),
        ({"metrics": ["per"]}, "metrics.0: should be a section"),
        (
            {"steps": {"start": 0, "end": 2, "stp": 1}},
            'unknown key "steps.stp" in section "steps"; did you mean "step"?',
        ),
        ({"steps": ["soon"]}, "steps.among.0: should be a valid integer"),
    ],
)
def test_a_mistake_in_such_a_file_is_one_sentence(write: Write, change: dict[str, Any], sentence: str) -> None:
    file = write({**whole(metric()), **change})
    with pytest.raises(UserError) as error:
        load(file, run=Path("there"))
    assert str(error.value).startswith(f"{file}: ")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("run: x\nmetrcs: [per]", 'unknown key "metrcs" at the top level; did you mean "metrics"?'),
        ("run: x\nmetrics: [per: 3]", "metrics.0: should be a valid string"),
        (
            "run: x\nparts: [{metrcs: [per]}]",
            'unknown key "parts.0.metrcs" in section "parts.0"; did you mean "metrics"?',
        ),
        ("run: x\nparts: []", "parts: list should have at least 1 item"),
        ("run: x\nmetrics: [per]\nparts: [{}]", 'parts: "metrics" belongs into each part and not beside them'),
        ("run: x\nreference: 3\nparts: [{}]", 'parts: "reference" belongs into each part and not beside them'),
        ("metrics: [per]", 'the key "run" is missing'),
    ],
)
def test_mistakes_in_our_own_files_keep_their_own_sentences(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load(write(text))
    assert sentence in str(error.value)
    assert "1.x" not in str(error.value)


def test_what_has_no_equivalent_is_said_key_by_key(write: Write) -> None:
    gradients, weights = ({**CIRCUIT, "data_type": kind} for kind in ("gradients", "weights"))
    raw = whole(metric("condition_number", components=[gradients, weights]), metric("norm", norm_type="inf"))
    raw |= {"analysis_name": "my analysis", "steps": {"start": 0, "end": 25, "step": 10}}
    raw["monitoring"] = {"output_dir": "x", "save_to_wandb": True, "wandb": {"entity": "a", "project": "b"}}
    file, notes = write(raw), []
    assert load(file, run=Path("there"), say=notes.append).name == "my-analysis"
    keys = [note.removeprefix(f"note: {file}: ").partition(":")[0] for note in notes]
    monitoring = ["monitoring.output_dir", "monitoring.save_to_wandb"]
    expected = ["ov_circuit"] * 3 + ["condition_number", "norm_type", "analysis_name", "steps", *monitoring]
    assert keys == expected
    notes.clear()
    quiet = whole(metric(), monitoring={"save_to_wandb": False}, steps=[0])
    assert load(write({**quiet, "steps": {"start": 0, "end": 20, "step": 10}}), run=Path("there"), say=notes.append)
    assert notes == []


def test_two_norms_on_two_splits_are_all_in_the_table(command: Command, write: Write, layout: RunLayout) -> None:
    both = [{**W_2, "data_type": kind} for kind in ("gradients", "weights")]
    norms = [metric("norm", split, both, norm_type=of) for of in ("inf", "nuclear") for split in ("train", "val")]
    code, out, err = command("run", write(whole(*norms, steps=[0, 1, 7])), "--run", layout.root)
    assert code == 0
    assert "note: steps: the run has no step 7" in err.splitlines()
    frame = read(layout.analysis("old").table)
    assert str(layout.analysis("old").table) in out.splitlines()
    found = frame.groupby(["kind", "metric"])["split"].value_counts(dropna=False).to_dict()
    of_gradients = {("gradients", name, split): 4 for name in ("max_abs", "nuclear_norm") for split in ("train", "val")}
    assert {key: n for key, n in found.items() if key[0] == "gradients"} == of_gradients
    assert len(frame) == 16 + 2 * 4  # weights are of no split
    assert set(frame["status"]) == {"ok"}
    before = layout.analysis("old").table.read_bytes()
    assert command("run", layout.analysis("old").config)[0] == 0
    assert layout.analysis("old").table.read_bytes() == before


def test_a_range_never_goes_beyond_its_end(
    command: Command, write: Write, new_run: Callable[..., Run], make_shape: Any
) -> None:
    run = new_run(make_shape(layers=2), (0, 30, 60, 90, 100, 120))
    raw = {**whole(metric()), "steps": {"start": 0, "end": 100, "step": 30}}
    assert command("run", write(raw), "--run", run.layout.root)[0] == 0
    assert sorted(set(read(run.layout.analysis("old").table)["step"])) == [0, 30, 60, 90]


def test_a_kind_that_the_run_does_not_hold_costs_only_itself(command: Command, write: Write, layout: RunLayout) -> None:
    file = write(whole(metric("cka", "train", [CIRCUIT], target_checkpoint=0), metric()))
    code, _, err = command("run", file, "--run", layout.root)
    assert code == 0
    assert "note: the run has no activations (of split train): left out, of cka" in err
    assert set(read(layout.analysis("old").table)["metric"]) == {"per"}
    code, _, err = command("run", write(whole(metric("gini", "train", [CIRCUIT]))), "--run", layout.root)
    assert code == 2
    assert "has no intact activations (of split train) to read" in err


def test_run_names_the_run(command: Command, write: Write, layout: RunLayout, tmp_path: Path) -> None:
    old = write(whole(metric("cka", components=[CIRCUIT], target_checkpoint=9)))
    code, _, err = command("run", old)
    assert code == 2
    assert err.splitlines()[-1] == f"pico-analyze: {old} is of pico-analyze 1.x and names no run: add --run RUN"
    code, _, err = command("run", old, "--run", tmp_path / "smal")
    assert (code, "smal" in err) == (2, True)
    code, _, err = command("run", old, "--run", layout.root)
    assert (code, "the reference step 9 is not in the run; the nearest is 2" in err) == (2, True)
    code, _, err = command("run", layout.root, "--run", layout.root)
    assert (code, "is a run already: leave out --run" in err) == (2, True)
    ours = write("run: nowhere\nmetrics: [per]\ncomponents: [v_proj]\nkinds: [weights]\n")
    assert command("run", ours)[0] == 2
    assert command("run", ours, "--run", layout.root)[0] == 0
    assert layout.analysis("default").table.is_file()


def test_anchors_and_merge_keys_are_read_as_yaml_has_them(write: Write) -> None:
    text = """
    analysis_name: old
    steps: [0]
    metrics:
    - &first {metric_name: per, data_split: val, components: [&c {component_name: simple, data_type: weights,
              layer_suffixes: swiglu.w_2, layers: [0]}]}
    - {<<: *first, metric_name: gini}
    """
    config = load(write(text), run=Path("there"))
    assert [part.metrics for part in config.parts or ()] == [["per", "gini"]]


NAMES = (
    *("cka", "condition_number", "gini", "hoyer", "norm_frobenius", "norm_inf", "norm_nuclear", "per", "pwcca"),
    *("pwcca_simple", "trap_dup", "trap_nomon"),
)


def reduced(raw: dict[str, Any]) -> dict[str, Any]:
    """Of layer 3 and of step 20 alone, and of step 10, which the run does not hold."""
    components = [one for entry in raw["metrics"] for one in entry["components"]]
    for component in components:
        component["layers"] = [3]
    return {**raw, "steps": [10, 20] if isinstance(raw["steps"], list) else raw["steps"]}


def measured(place: Path, file: Path, out: Path, name: str) -> pd.DataFrame:
    config = load(file, [f"out={out}", "figures.metrics=[]"], place / "run")
    run_analysis(config, str(file), lambda _: None)
    layout: AnalysisLayout = RunLayout(out).analysis(name)
    return read(layout.table)


def agrees(number: Number, value: float | None, status: str) -> bool:
    """As docs/pico_v1_numbers.md says of the group; of those that were other numbers, that there is one."""
    group = group_of(number)
    if group == "noise" or (group == "rounding" and status == "rank_deficient"):
        return value is None
    if group in ("v_o", "pwcca"):
        return status == "ok" or number.metric == "condition_number"
    return value is not None and relative(value, number) < max(1e-4, EPS * number.value * (group == "rounding"))


@pytest.mark.parametrize("name", NAMES)
def test_a_real_configuration_gives_its_numbers(name: str, write: Write, tmp_path: Path) -> None:
    place = pico_v1_numbers.place()
    file = write(reduced(yaml.safe_load((place / "configs" / f"{name}.yaml").read_text())))
    frame = measured(place, file, tmp_path, name)
    assert not frame.duplicated(KEY).any()
    values = pico_v1_numbers.values(frame)
    if name == "trap_dup":
        assert sorted(key[0] for key in values) == sorted(["frobenius_norm", "nuclear_norm", "max_abs"] * 2)
    if name.startswith("trap"):
        assert {key[-1] for key in values} == {0, 20}
    numbers = [n for n in pico_v1_numbers.printed(place / "results" / name) if n.step == 20 and ".3." in n.module]
    assert bool(numbers) == (name not in ("pwcca", "trap_dup", "trap_nomon"))
    for number in numbers:
        assert agrees(number, *values[key_of(number)]), number


def test_beside_a_run_of_1x_nothing_is_written(command: Command, monkeypatch: Any, tmp_path: Path) -> None:
    place = pico_v1_numbers.place()
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("run", place / "configs" / "trap_nomon.yaml", "--run", place / "run")
    assert code == 0
    written = Path("analysis", "run", "trap_nomon")
    assert {Path(line).parent for line in out.splitlines()} == {written}
    assert not (place / "run" / "analysis").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_real_configuration_gives_its_numbers(name: str, tmp_path: Path) -> None:
    place = pico_v1_numbers.place()
    values = pico_v1_numbers.values(measured(place, place / "configs" / f"{name}.yaml", tmp_path, name))
    numbers = list(pico_v1_numbers.printed(place / "results" / name))
    if numbers:
        assert set(values) == {key_of(number) for number in numbers}
    for number in numbers:
        assert agrees(number, *values[key_of(number)]), number
