"""Runs and files from before keys were renamed: they go on, are the same configuration, and write the same run.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_contract import codec, strict_yaml
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_contract.renames import RUN
from pico_contract.schema import RunManifest
from pico_train import train
from pico_train.cli import main
from pico_train.config import Section, identity, load, note, to_yaml, validate
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig
from pico_train.run.config import DataConfig
from pico_train.run.stored_config import load_stored
from pico_train.run.train_config import TrainConfig

Tiny = Callable[..., RunConfig]
TESTS = next(folder for folder in Path(__file__).parents if folder.name == "tests")
FROZEN = TESTS / "contract" / "fixtures" / "config_before_renames.yaml"
"""The config.yaml of a run as it was written before any key was renamed, with a value under every old name."""


def in_old_names(layout: RunLayout) -> None:
    """Give the run the config.yaml, and its digest, that it would have had before."""
    text = layout.config.read_text(encoding="utf-8")
    for old, new in RUN.keys.items():
        text = text.replace(f"  {new.rpartition('.')[2]}:", f"  {old.rpartition('.')[2]}:")
    codec.write_text(layout.config, text.replace("order: sequential", "order: shipped"))
    manifest = codec.read_manifest(layout.manifest, RunManifest)
    manifest.digests[layout.config.name] = codec.sha256_file(layout.config)
    codec.write_text(layout.manifest, manifest.to_json())


def test_the_frozen_configuration_is_read_and_is_what_it_was() -> None:
    config = load(RunConfig, FROZEN)
    assert (config.train.micro_batch_size, config.train.max_hours, config.train.stop_margin_minutes) == (4, 1.5, 2.0)
    assert config.data.order == "sequential"
    raw = strict_yaml.read_mapping(FROZEN)
    assert raw["train"].keys() >= {"micro_batch", "hours", "margin_minutes"}
    assert strict_yaml.parse(to_yaml(config), "again") == RUN.current(raw, "frozen")
    assert load(RunConfig, FROZEN, ["train.max_hours=3"]).train.max_hours == 3
    assert load(RunConfig, FROZEN, ["train.hours=3"]).train.max_hours == 3


@pytest.mark.parametrize("order", ["shipped", "sequential"])
def test_a_run_from_before_goes_on_as_if_nothing_had_been_renamed(
    tiny: Tiny, order: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shared = {"data.order": order, "train.micro_batch_size": 4, "snapshot.every": 0}
    whole = tiny(name="whole", **shared)
    train(whole, quiet=True)
    cut = tiny(name="cut", **shared, **{"train.max_hours": 1e-9, "train.stop_margin_minutes": 0})
    assert train(cut, quiet=True).status == "stopped"
    in_old_names(cut.layout)
    assert "micro_batch: 4" in cut.layout.config.read_text()
    assert identity(load_stored(cut.layout)) == identity(cut)
    capfd.readouterr()
    outcome = train(tiny(name="cut", **shared, **{"train.max_hours": None}))
    assert outcome.status == "finished"
    said = "".join(capfd.readouterr())
    assert "warning" not in said
    assert "changed" not in said
    assert "not bit-identical" not in said
    hashes = [[row["order_hash"] for row in read_metrics(one.layout.metrics)] for one in (whole, cut)]
    assert hashes[0] == hashes[1]
    assert "micro_batch_size: 4" in cut.layout.config.read_text()


def test_run_json_keeps_its_names(tiny: Tiny) -> None:
    config = tiny(**{"data.order": "sequential", "train.steps": 1, "schedule.warmup_steps": 0})
    train(config, quiet=True)
    manifest = json.loads(config.layout.manifest.read_text())
    assert manifest["data"]["order"] == "shipped"
    assert manifest["sessions"][0]["micro_batch"] == 8


@pytest.mark.parametrize("key", sorted({*RUN.keys, *RUN.values}))
def test_python_accepts_the_old_names_too(key: str, raw: dict[str, Any]) -> None:
    section, _, name = key.rpartition(".")
    kind: type[Section] = {"train": TrainConfig, "data": DataConfig}[section]
    needed = {"path": "rows"} if kind is DataConfig else {}
    new = RUN.keys.get(key, key).rpartition(".")[2]
    old_value, value = next(iter(RUN.values.get(key, {1: 1}).items()))
    assert kind(**needed, **{name: old_value}) == kind(**needed, **{new: value})
    raw[section][name] = old_value
    assert getattr(getattr(RunConfig(**raw), section), new) == value
    assert getattr(getattr(validate(RunConfig, raw, "test"), section), new) == value


def test_python_refuses_both_names() -> None:
    with pytest.raises(UserError, match=r"^TrainConfig: train\.hours is the old name of train\.max_hours, and"):
        TrainConfig(hours=1, max_hours=1)


@pytest.fixture
def check(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """(exit code, stderr) of `pico-train check` of the tiny run."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "tiny.yaml"

    def run(*overrides: str) -> tuple[int, str]:
        note.cache_clear()
        file.write_text(strict_yaml.dump(raw))
        monkeypatch.setattr(sys, "argv", ["pico-train", "check", str(file), *overrides])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err.replace(f"{tmp_path}/", "")

    return run


def test_old_names_are_said_in_one_line(
    check: Callable[..., tuple[int, str]], raw: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    raw["train"]["micro_batch"] = 4
    given = ["train.micro_batch=2", "train.hours=2", "train.hours=3", "data.order=shipped", "train.margin_minutes=1"]
    assert check(*given)[0] == 0
    (line,) = caplog.messages
    assert line.removeprefix("note: ").split("; ") == [
        "train.micro_batch is now called train.micro_batch_size",
        "train.hours is now called train.max_hours",
        "train.margin_minutes is now called train.stop_margin_minutes",
        "data.order: shipped is now called sequential",
    ]
    caplog.clear()
    del raw["train"]["micro_batch"]
    assert check("train={steps: 10, batch_size: 8, hours: 2}")[0] == 0
    assert caplog.messages == ["note: train.hours is now called train.max_hours"]
    caplog.clear()
    assert check("train.max_hours=2", "data.order=sequential") == (0, "")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.hours=x"], "the command line: train.max_hours: should be a valid number "),
        (["train.hours=1", "train.max_hours=2"], "the command line: train.hours is the old name of train.max_hours"),
        (["data.order=shiped"], "data.order: should be 'shuffled' or 'sequential' (it is \"shiped\")"),
        (["train.hour=1"], 'unknown key "train.hour" in section "train"; did you mean "max_hours"?'),
        (["train.micro_batchs=1"], 'key "train.micro_batchs" in section "train"; did you mean "micro_batch_size"?'),
        (["train.margin_minute=1"], 'did you mean "stop_margin_minutes"?'),
    ],
)
def test_a_mistake_names_the_new_key(
    check: Callable[..., tuple[int, str]], overrides: list[str], sentence: str
) -> None:
    code, err = check(*overrides)
    assert code == 2
    assert sentence in err


def test_both_names_in_a_file_are_refused(check: Callable[..., tuple[int, str]], raw: dict[str, Any]) -> None:
    raw["train"] |= {"hours": 1, "max_hours": 1}
    code, err = check()
    assert code == 2
    assert "tiny.yaml: train.hours is the old name of train.max_hours, and both are given: leave out train.hours" in err
