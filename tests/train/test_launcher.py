"""Variables of a launcher that are left behind are refused in a sentence or ignored, and never break a message."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pico_contract.errors import UserError
from pico_train.cli import main
from pico_train.launcher import check_launch, only_a_launch, process_of

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
VARIABLES = (*WHOLE, "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

REFUSED = [
    ({"RANK": "3"}, "says RANK=3 but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start several"),
    ({"WORLD_SIZE": "2"}, "says WORLD_SIZE=2 but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start several"),
    ({"LOCAL_RANK": "1"}, "says LOCAL_RANK=1 but not RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start several"),
    ({**WHOLE, "MASTER_ADDR": ""}, "says RANK=1 but not MASTER_ADDR: start several"),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "says OMPI_COMM_WORLD_SIZE=4 but not RANK, WORLD_SIZE, "),
    ({"RANK": "abc"}, 'says RANK="abc", which is not a number: start several'),
    ({"RANK": ""}, 'says RANK="", which is not a number: start several'),
    ({"WORLD_SIZE": "2.0"}, 'says WORLD_SIZE="2.0", which is not a number'),
    ({"LOCAL_RANK": "\x1b[31m"}, 'says LOCAL_RANK="\\x1b[31m", which is not a number'),
    ({**WHOLE, "RANK": "2"}, "says RANK=2 and WORLD_SIZE=2, which number no process"),
    ({**WHOLE, "RANK": "-1"}, "says RANK=-1 and WORLD_SIZE=2, which number no process"),
]
IGNORED: list[dict[str, str]] = [
    {},
    {"RANK": "0"},
    {"WORLD_SIZE": "1"},
    {"LOCAL_RANK": "0"},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    {"LOCAL_RANK": "-1"},
    {"MASTER_ADDR": "nowhere"},
    {"MASTER_PORT": "x"},
    {"PMI_SIZE": "1"},
]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def setting(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)


@pytest.mark.parametrize(("variables", "sentence"), REFUSED)
def test_half_a_launch_is_refused_by_name(
    environment: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    setting(environment, variables)
    with pytest.raises(UserError) as caught:
        check_launch()
    assert sentence in str(caught.value)
    assert process_of() == (0, 1)


@pytest.mark.parametrize("variables", IGNORED)
def test_a_single_process_is_no_launch(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    setting(environment, variables)
    check_launch()
    assert process_of() == (0, 1)
    before = dict(os.environ)
    with only_a_launch():
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE"} & os.environ.keys()
    assert dict(os.environ) == before


def test_a_launch_is_believed(environment: pytest.MonkeyPatch) -> None:
    setting(environment, WHOLE)
    check_launch()
    assert process_of() == (1, 2)
    with only_a_launch():
        assert os.environ["LOCAL_RANK"] == "1"


@pytest.mark.parametrize("variables", [variables for variables, _ in REFUSED] + IGNORED)
def test_messages_are_printed_in_any_environment(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str]
) -> None:
    setting(environment, variables)
    environment.setattr(sys, "argv", ["pico-train", "list", "nowhere"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "pico-train: there is no directory nowhere; name the one that holds your runs\n"


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "0"}, {"RANK": "0"}, {"WORLD_SIZE": "1"}, {"MASTER_PORT": "x"}])
def test_a_run_trains_with_what_one_process_may_leave_behind(
    environment: pytest.MonkeyPatch, raw: dict[str, Any], tmp_path: Path, variables: dict[str, str]
) -> None:
    setting(environment, variables)
    raw["train"] |= {"steps": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    environment.chdir(tmp_path)
    environment.setattr(sys, "argv", ["pico-train", "run", "tiny.yaml"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [(REFUSED[0][0], REFUSED[0][1]), ({"ACCELERATE_USE_CPU": "perhaps"}, "accelerate cannot start with these env")],
)
def test_a_run_is_refused_in_half_a_launch(
    environment: pytest.MonkeyPatch,
    raw: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    sentence: str,
) -> None:
    setting(environment, variables)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    environment.chdir(tmp_path)
    environment.setattr(sys, "argv", ["pico-train", "run", "tiny.yaml"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err
