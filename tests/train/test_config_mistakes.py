"""All mistakes of a configuration at once, whatever its keys are called and whatever its values are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pico_contract import strict_yaml
from pico_contract.errors import UserError
from pico_train.config import load, validate
from pico_train.data.prepare import PrepareConfig
from pico_train.method.relora.config import ReLoRAConfig
from pico_train.run import RunConfig


def refusal(raw: dict[str, Any], *overrides: str, folder: Path) -> list[str]:
    """Lines of the refusal of a run's configuration."""
    file = folder / "tiny.yaml"
    file.write_text(strict_yaml.dump(raw))
    with pytest.raises(UserError) as caught:
        load(RunConfig, file, overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize(
    "key",
    ["X", "Train", "int", "str", "float", "bool", "list[int]", "DecoderConfig", "a b", "0", "null", "true", "1.5", "é"],
)
@pytest.mark.parametrize("section", ["", "model.", "schedule.", "data.stream.", "evaluate.perplexity."])
def test_an_unknown_key_is_named_whatever_it_is_called(
    raw: dict[str, Any], tmp_path: Path, section: str, key: str
) -> None:
    inside = raw
    for part in section.split(".")[:-1]:
        inside = inside.setdefault(part, {})
    inside[key] = 1
    (line,) = refusal(raw, folder=tmp_path)
    assert line.startswith(f'tiny.yaml: unknown key "{section}{key}" ')
    assert "; did you mean " in line or "; choose from: " in line
    assert "__pydantic_config__" not in line


def test_a_dotted_key_is_a_key_of_its_own(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["train.steps"] = 3
    (line,) = refusal(raw, folder=tmp_path)
    assert line.startswith('tiny.yaml: unknown key "train.steps" ')


def test_every_key_of_a_section_is_listed_where_none_is_near(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["zzzzzzz"] = 1
    (line,) = refusal(raw, folder=tmp_path)
    assert line.endswith("choose from: " + ", ".join(sorted(RunConfig.model_fields)))
    assert len(RunConfig.model_fields) > 12


def test_all_mistakes_are_listed_and_each_is_blamed_on_its_place(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["trian"] = {}
    raw["train"] |= {"steps": "ten", "batch_size": True}
    raw["optimizer"] = {"lr": float("nan"), "betas": [0.9]}
    raw["snapshot"]["kinds"] = ["weights"]
    kinds = "'train.gradients', 'train.microbatch_gradients', 'val.gradients' or 'val.activations'"
    assert refusal(raw, "model.hiden_size=3", folder=tmp_path) == [
        "tiny.yaml: 7 mistakes",
        "  optimizer.lr: should be a finite number (it is nan)",
        '  the command line: unknown key "model.hiden_size" in section "model"; did you mean "hidden_size"?',
        '  train.steps: should be a valid integer (it is "ten")',
        "  train.batch_size: should be a valid integer (it is true)",
        '  the key "optimizer.betas.1" is missing',
        f'  snapshot.kinds.0: should be {kinds} (it is "weights")',
        '  unknown key "trian" at the top level; did you mean "train"?',
    ]


def test_more_mistakes_than_one_can_read_are_counted(raw: dict[str, Any], tmp_path: Path) -> None:
    raw |= {f"zz{number}": 1 for number in range(200)}
    lines = refusal(raw, folder=tmp_path)
    assert lines[0] == "tiny.yaml: 200 mistakes"
    assert (len(lines), lines[-1]) == (22, "  and 180 more")


def test_a_file_without_a_configuration_lacks_every_required_key(tmp_path: Path) -> None:
    assert refusal({}, folder=tmp_path) == [
        "tiny.yaml: 2 mistakes",
        '  the key "name" is missing',
        '  the key "data" is missing',
    ]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train", None, "train: should be a section (it is null)"),
        ("train", [], "train: should be a section (it is [])"),
        ("train", [{"steps": 3}], 'train: should be a section (it is [{"steps": 3}])'),
        ("name", ["a"], 'name: should be a valid string (it is ["a"])'),
        ("name", {"int": 3}, "name: should be a valid string (it is a section)"),
        ("observe", {"name": "x"}, "observe: should be a list (it is a section)"),
        ("observe", ["x"], 'observe.0: should be a section (it is "x")'),
        ("optimizer", {"lr": 10**400}, "optimizer.lr: should be "),
        ("optimizer", {"lr": "\0" * 90}, 'optimizer.lr: should be a valid number (it is "\\u0000'),
        ("name", "\0" * 900, 'name is "'),
        ("name", "x" * 100_000, "name has 100000 characters; use 200 at most"),
        ("init_from", "x" * 100_000, ""),
        ("y" * 100_000, 1, 'unknown key "yyyyyyy'),
    ],
)
def test_a_value_of_any_sort_is_refused_in_a_short_sentence(
    raw: dict[str, Any], tmp_path: Path, key: str, value: Any, expected: str
) -> None:
    raw[key] = value
    if expected:
        (line,) = refusal(raw, folder=tmp_path)
        assert line.startswith(f"tiny.yaml: {expected}")
        assert len(line) < 1500


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train..steps=3", '"train..steps=3" is not an override: write key=value'),
        (".steps=3", '".steps=3" is not an override: write key=value'),
        ("train.=3", '"train.=3" is not an override: write key=value'),
        ("a." * 5000 + "b=1", '"a.a.a.'),
        ("train\x1b[31m=1", '"train\\x1b[31m=1" is not an override: no key is called that'),
        ("train.steps={a: *b}", 'the value of the override "train.steps={a: *b}" is not valid YAML: line 1, column 5'),
        ("train.steps=" + "[" * 500, 'the value of the override "train.steps=[[['),
        ("train.steps=010x", 'the command line: train.steps: should be a valid integer (it is "010x")'),
        ("train.steps==3", 'the command line: train.steps: should be a valid integer (it is "=3")'),
        ("name.int=3", 'the override "name.int=3" goes below "name", which is a value and not a section'),
        ("Train.steps=3", 'the command line: unknown key "Train" at the top level; did you mean "train"?'),
        ("train.int.str=3", 'the command line: unknown key "train.int" in section "train"; '),
    ],
)
def test_an_override_of_any_sort_is_refused_in_a_short_sentence(
    raw: dict[str, Any], tmp_path: Path, override: str, sentence: str
) -> None:
    (line,) = refusal(raw, override, folder=tmp_path)
    assert line.startswith(sentence)
    assert len(line) < 1500


def test_a_value_of_several_types_names_them_all() -> None:
    with pytest.raises(UserError) as caught:
        validate(ReLoRAConfig, {"rank": "many"}, "here", under="method.options")
    assert str(caught.value) == (
        'here: method.options.rank: should be a valid integer or a valid number (it is "many")'
    )


def test_the_other_commands_configurations_are_refused_alike() -> None:
    with pytest.raises(UserError) as caught:
        load(PrepareConfig, None, ["source.pth=x", "seq_len=0", "Out=y"])
    assert str(caught.value).splitlines() == [
        "the command line: 3 mistakes",
        '  unknown key "source.pth" in section "source"; did you mean "path"?',
        "  seq_len: should be greater than or equal to 1 (it is 0)",
        '  unknown key "Out" at the top level; did you mean "out"?',
    ]
