"""Configurations from before keys were renamed, of analyses and of the runs that are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pico_analyze import live
from pico_analyze.compare.run_facts import read_facts
from pico_analyze.config import AnalysisConfig, load, to_yaml
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_contract.observer import ObservedRun

from ...support.made_arms import Manifest, Measured

OLD = {"data": {"order": "shipped"}, "train": {"steps": 10, "micro_batch": 4, "hours": 1.0, "margin_minutes": 5.0}}
NEW = {
    "data": {"order": "sequential"},
    "train": {"steps": 10, "micro_batch_size": 2, "max_hours": 2.0, "stop_margin_minutes": 1.0},
}


def facts(root: Path, name: str, config: dict[str, Any] | None) -> Any:
    run: Any = Measured(name, Manifest({"init": 0}, data={"fingerprint": "f", "order": "shipped"}))
    if config is not None:
        run.configure(root, config)
    return read_facts(run)


def test_an_old_run_and_a_new_one_have_one_configuration(tmp_path: Path) -> None:
    old, new = facts(tmp_path, "old", OLD), facts(tmp_path, "new", NEW)
    assert old.configuration == new.configuration
    assert old.configuration["data.order"] == "sequential"
    assert facts(tmp_path, "bare", None).configuration["data.order"] == "sequential"  # from run.json alone


def test_a_configuration_with_both_names_is_a_problem_and_no_guess(tmp_path: Path) -> None:
    found = facts(tmp_path, "both", {"train": {"hours": 1, "max_hours": 1}})
    assert "train.hours is the old name of train.max_hours, and both are given" in found.problem
    assert not found.configured


def test_the_old_key_of_an_analysis_is_read_and_said(tmp_path: Path) -> None:
    file, said = tmp_path / "analysis.yaml", []
    file.write_text("run: x\nform_circuits: true\n")
    config = load(file, say=said.append)
    assert config == AnalysisConfig(run=Path("x"), dense_circuits=True)
    assert said == ["note: form_circuits is now called dense_circuits"]
    assert yaml.safe_load(to_yaml(config))["dense_circuits"] is True
    assert load(file, ["dense_circuits=false"]).dense_circuits is False
    assert load(file, ["form_circuits=false"]).dense_circuits is False
    assert AnalysisConfig.model_validate({"run": "x", "form_circuits": True}).dense_circuits


def test_both_names_and_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "analysis.yaml"
    file.write_text("run: x\nform_circuits: true\ndense_circuits: true\n")
    with pytest.raises(UserError, match=r"analysis\.yaml: form_circuits is the old name of dense_circuits, and both"):
        load(file)
    file.write_text("run: x\n")
    with pytest.raises(UserError, match=r"^the command line: dense_circuits: should be a valid boolean"):
        load(file, ["form_circuits=1"])
    with pytest.raises(UserError, match=r'unknown key "form_circuit" .* did you mean "dense_circuits"'):
        load(file, ["form_circuit=true"])


@pytest.mark.parametrize("key", ["form_circuits", "dense_circuits"])
def test_what_is_no_option_while_a_run_trains_is_none_under_its_old_name(tmp_path: Path, key: str) -> None:
    run = ObservedRun(RunLayout(tmp_path), "x", {}, (), (), False)
    with pytest.raises(UserError, match=r'^"dense_circuits" is not an option while a run trains'):
        live.observer(run, {key: True})
