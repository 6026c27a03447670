"""Types of the fields of a configuration: what may stand at a key, and which words are booleans there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pico_analyze.config import load as load_analysis
from pico_contract.config_types import read_booleans, type_at, valid_keys
from pico_contract.errors import UserError
from pico_contract.strict_yaml import dump, parse, read_mapping
from pico_train.config import load as load_run
from pico_train.run import RunConfig
from pydantic import BaseModel


@dataclass
class Geometry:
    width: int
    tied: bool = False


class Section(BaseModel):
    flag: bool = False
    maybe: bool | None = None
    marked: Annotated[bool, "a mark"] = False
    choice: Literal["auto", "on", "off"] = "auto"
    text: str = ""
    either: bool | str = False
    flags: list[bool] = []
    by_name: dict[str, bool] = {}
    model: Geometry | None = None
    several: list[Geometry] | Geometry = []


@pytest.mark.parametrize(
    ("word", "value"), [("on", True), ("yes", True), ("off", False), ("NO", False), ("Off", False)]
)
@pytest.mark.parametrize("key", ["flag", "maybe", "marked"])
def test_a_word_is_a_boolean_where_the_field_is_one(key: str, word: str, value: bool) -> None:
    """The grammar reads the word as text; the field says what it means."""
    assert read_booleans(Section, {key: word}) == {key: value}


@pytest.mark.parametrize("key", ["choice", "text", "either", "unknown"])
def test_a_word_stays_text_where_the_field_may_be_text(key: str) -> None:
    assert read_booleans(Section, {key: "off"}) == {key: "off"}


@pytest.mark.parametrize("value", ["offf", "", "true", 0, 1, None, 1.5])
def test_no_other_value_becomes_a_boolean(value: Any) -> None:
    assert read_booleans(Section, {"flag": value}) == {"flag": value}


def test_booleans_are_found_in_lists_mappings_and_sections() -> None:
    raw = {"flags": ["on", "off"], "by_name": {"a": "off"}, "model": {"tied": "on", "width": "on"}, "several": ["no"]}
    assert read_booleans(Section, raw) == {
        "flags": [True, False],
        "by_name": {"a": False},
        "model": {"tied": True, "width": "on"},
        "several": ["no"],
    }
    assert read_booleans(Section, {"several": [{"tied": "off"}]}) == {"several": [{"tied": False}]}
    assert read_booleans(Section, {"several": {"tied": "off"}}) == {"several": {"tied": False}}


def test_keys_of_a_section_within_are_known() -> None:
    assert valid_keys(Section, ("model",)) == ["width", "tied"]
    assert valid_keys(Section, ("several", 0)) == ["width", "tied"]
    assert valid_keys(Section, ("flag",)) == []


def test_the_type_at_a_key_is_that_of_the_field() -> None:
    assert type_at(Section, "flag") is bool
    assert type_at(list[Geometry] | Geometry, 0) is Geometry
    assert type_at(list[Geometry] | Geometry, "width") is int
    assert type_at(dict[str, bool], "any") is bool
    assert type_at(Section, "unknown") is None


def of_training(text: str, folder: Path) -> Any:
    """Read the configuration of the frozen run with `text`, dotted keys and values, in it."""
    raw = read_mapping(Path(__file__).parent / "fixtures" / "run_v1" / "config.yaml")
    for dotted, value in parse(text, "changes").items():
        section, key = dotted.split(".")
        raw.setdefault(section, {})[key] = value
    (folder / "train.yaml").write_text(dump(raw))
    return load_run(RunConfig, folder / "train.yaml")


def of_analysis(text: str, folder: Path) -> Any:
    """Read `text` as the configuration of an analysis of some run."""
    (folder / "analysis.yaml").write_text(f"run: runs/a\n{text}")
    return load_analysis(folder / "analysis.yaml")


def test_three_e_minus_four_is_a_number_in_both_libraries(tmp_path: Path) -> None:
    assert of_training("optimizer.lr: 3e-4", tmp_path).optimizer.lr == 3e-4
    assert of_analysis("disk_gib: 3e-4", tmp_path).disk_gib == 3e-4


@pytest.mark.parametrize(("word", "value"), [("off", False), ("on", True), ("no", False), ("yes", True)])
def test_off_is_false_where_the_field_is_a_boolean_in_both_libraries(tmp_path: Path, word: str, value: bool) -> None:
    assert of_training(f"train.activation_checkpointing: {word}", tmp_path).train.activation_checkpointing is value
    assert of_analysis(f"figures: {{heads: {word}}}", tmp_path).figures.heads is value


def test_off_is_text_where_the_field_is_text_in_both_libraries(tmp_path: Path) -> None:
    assert of_training("train.compile: off\ndisk.check: off", tmp_path).train.compile == "off"
    assert of_analysis("name: off\nmetrics: [off]", tmp_path).metrics == ["off"]
    assert of_analysis("name: off", tmp_path).name == "off"


@pytest.mark.parametrize(
    ("read", "text", "sentence"),
    [
        (of_training, "train.step: 3", 'unknown key "train.step" in section "train"; did you mean "steps"?'),
        (of_analysis, "metrcs: [per]", 'unknown key "metrcs" at the top level; did you mean "metrics"?'),
        (of_training, 'optimizer.lr: "3e-4"', 'optimizer.lr: should be a valid number (it is "3e-4")'),
        (of_analysis, 'disk_gib: "3e-4"', 'disk_gib: should be a valid number (it is "3e-4")'),
        (of_training, "train.steps: 10.0", "train.steps: should be a valid integer (it is 10.0)"),
        (of_analysis, "null_draws: 10.0", "null_draws: should be a valid integer (it is 10.0)"),
        (of_training, "train.steps: off", 'train.steps: should be a valid integer (it is "off")'),
        (of_analysis, "null_draws: off", 'null_draws: should be a valid integer (it is "off")'),
        (of_training, "train.activation_checkpointing: 1", "should be a valid boolean (it is 1)"),
        (of_analysis, "dense_circuits: 1", "dense_circuits: should be a valid boolean (it is 1)"),
    ],
)
def test_unknown_keys_and_wrong_types_are_errors_in_both_libraries(
    tmp_path: Path, read: Callable[[str, Path], Any], text: str, sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(text, tmp_path)
    assert sentence in str(caught.value)
