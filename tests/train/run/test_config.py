"""Defaults < YAML < overrides; what is resolved can be fed back; identity fields bind a run, operation fields not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pico_contract.errors import UserError
from pico_train import train
from pico_train.cli import main
from pico_train.config import Section, identity, load, read_yaml, to_yaml, validate
from pico_train.run import RunConfig

Tiny = Callable[..., RunConfig]

OPERATION = {
    "observe",
    "runs_dir",
    "data.path",
    "data.stream.cache",
    "data.stream.cache_gib",
    "train.micro_batch",
    "train.compile",
    "train.activation_checkpointing",
    "train.device",
    "train.sharding",
    "train.threads",
    "train.hours",
    "train.margin_minutes",
    "train.timeout_minutes",
    "checkpoint.every",
    "checkpoint.keep.last",
    "checkpoint.keep.every",
    "checkpoint.keep.state",
    "disk.check",
    "evaluate.every",
    "evaluate.perplexity.rows",
    "evaluate.perplexity.batch_size",
    "evaluate.perplexity.seq_len",
    "evaluate.text_perplexity.sources",
    "evaluate.text_perplexity.texts",
    "evaluate.text_perplexity.seq_len",
    "evaluate.text_perplexity.start_token",
    "evaluate.text_perplexity.batch_tokens",
    "evaluate.paloma.path",
    "evaluate.paloma.split",
    "evaluate.paloma.texts",
    "evaluate.paloma.start_token",
    "evaluate.paloma.seq_len",
    "evaluate.paloma.batch_tokens",
    "evaluate.blimp.path",
    "evaluate.blimp.start_token",
    "evaluate.blimp.batch_tokens",
    "log.every",
    "log.console_every",
    "log.mfu",
    "log.trackers",
    "log.project",
    "hub.repo",
    "hub.branch",
    "hub.private",
    "hub.every",
    "hub.wait_minutes",
}
"""What may change between sessions of a run. A field that is added is identity unless it is added here on purpose."""


def leaves(config: Any, prefix: str = "") -> Iterator[str]:
    names = type(config).model_fields if isinstance(config, Section) else [f.name for f in fields(config)]
    for name in names:
        value = getattr(config, name)
        if isinstance(value, Section) or is_dataclass(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_defaults_then_the_file_then_overrides(raw: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(raw))
    config = load(RunConfig, file, ["train.steps=7", "snapshot.positions.rule=every", "train.steps=6"])
    assert config.optimizer.weight_decay == 0.01  # default
    assert config.optimizer.lr == 0.01  # file
    assert config.train.steps == 6  # the last override
    assert config.train.batch_size == 8  # its neighbour in the file
    assert (config.snapshot.positions.rule, config.snapshot.probe_rows) == ("every", 6)


def test_without_a_file_overrides_are_the_configuration() -> None:
    config = load(RunConfig, None, ["name=bare", "data.path=somewhere"])
    assert (config.name, config.data.path, config.train.steps) == ("bare", Path("somewhere"), 200_000)
    with pytest.raises(UserError, match=r'^the command line: the key "data" is missing$'):
        load(RunConfig, None, ["name=bare"])


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "0.3e-3", "3E-4", "+3e-4", "30e-5", ".3e-3", "0.0003"])
def test_a_learning_rate_is_a_number_however_it_is_written(raw: dict[str, Any], tmp_path: Path, text: str) -> None:
    """PyYAML follows YAML 1.1, where 3e-4 is text."""
    file = tmp_path / "tiny.yaml"
    raw["optimizer"] = {"lr": 0.5}
    file.write_text(yaml.safe_dump(raw).replace("0.5", text))
    assert load(RunConfig, file).optimizer.lr == 3e-4
    assert load(RunConfig, file, [f"optimizer.eps={text}"]).optimizer.eps == 3e-4


def test_text_that_only_resembles_a_number_stays_text(tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text("a: e4\nb: 1e\nc: '3e-4'\nd: 2e3b\ne: 7f3e1\n")
    assert read_yaml(file) == {"a": "e4", "b": "1e", "c": "3e-4", "d": "2e3b", "e": "7f3e1"}


def test_on_and_off_are_choices_and_no_booleans(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text("a: on\nb: off\nc: yes\nd: no\ne: true\nf: False\n")
    assert read_yaml(file) == {"a": "on", "b": "off", "c": "yes", "d": "no", "e": True, "f": False}
    file.write_text(to_yaml(tiny()))
    config = load(RunConfig, file, ["train.compile=on", "disk.check=off", "train.activation_checkpointing=true"])
    assert (config.train.compile, config.disk.check, config.train.activation_checkpointing) == ("on", "off", True)
    file.write_text(to_yaml(config))
    assert load(RunConfig, file) == config


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    file = tmp_path / "merged.yaml"
    file.write_text("base: &base {lr: 1e-3, eps: 1e-8}\nother: {<<: *base, lr: 2e-3}\n")
    assert read_yaml(file)["other"] == {"lr": 2e-3, "eps": 1e-8}


def test_numbers_keep_their_digits_when_fed_back(tiny: Tiny) -> None:
    config = tiny(**{"optimizer.lr": 0.1 + 0.2, "optimizer.eps": 1e-8, "model.rope_theta": 5e5, "seed.init": 2**62})
    assert validate(RunConfig, yaml.safe_load(to_yaml(config)), "again") == config


def test_the_resolved_configuration_fed_back_continues_the_same_run(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = tiny(**{"snapshot.positions": {"rule": "every", "k": 4}, "init_from": None})
    train(config, quiet=True)
    written = config.layout.config
    assert load(RunConfig, written) == config
    for path in (written, config.layout.root):  # a run's directory stands for its configuration
        monkeypatch.setattr(sys, "argv", ["pico-train", "run", str(path)])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        assert capsys.readouterr().out.endswith("is finished (step 10); there is nothing to do\n")


def test_operation_fields_are_those_and_no_others(tiny: Tiny) -> None:
    config = tiny()
    assert set(leaves(config)) - set(identity(config)) == OPERATION


def test_every_changed_identity_key_is_listed_with_both_values(tiny: Tiny) -> None:
    train(tiny(), quiet=True)
    before = {p: p.read_bytes() for p in tiny().layout.root.rglob("*") if p.is_file()}
    changed = {
        "model.rope_theta": 5000.0,
        "seed.data": 3,
        "train.batch_size": 4,
        "optimizer.betas": [0.9, 0.95],
        "snapshot.positions": {"rule": "all"},
        "train.threads": 1,
    }
    config = tiny(**changed)
    with pytest.raises(UserError) as caught:
        train(config, quiet=True)
    assert str(caught.value) == (
        f"{config.layout.root} is another run: model.rope_theta (10000.0 -> 5000.0), seed.data (0 -> 3),"
        " train.batch_size (8 -> 4), optimizer.betas ([0.9, 0.999] -> [0.9, 0.95]), snapshot.positions.rule"
        " (last -> all) changed; choose another name, or undo the change"
    )
    assert {p: p.read_bytes() for p in config.layout.root.rglob("*") if p.is_file()} == before


def test_every_field_has_a_description() -> None:
    """One docstring line a field, with its unit and its "off" value, is what `check` and editors can show."""

    def undescribed(kind: type, prefix: str) -> Iterator[str]:
        for name, info in kind.model_fields.items():
            if not info.description:
                yield f"{prefix}{name}"
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                yield from undescribed(info.annotation, f"{prefix}{name}.")

    assert list(undescribed(RunConfig, "")) == []
    schema = RunConfig.model_json_schema()["$defs"]
    for room in ("DecoderConfig", "ScheduleConfig"):  # dataclasses
        assert [key for key, value in schema[room]["properties"].items() if not value.get("description")] == []
