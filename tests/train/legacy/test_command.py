"""`pico-train convert`: what goes to stdout, to stderr and to files, and with which exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pico_train.cli import main
from pico_train.legacy.config import convert_config

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, stdout, stderr) of `pico-train convert ...`, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pico-train", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(str(caught.value.code)), *capsys.readouterr()

    return run


def test_a_configuration_is_printed_and_its_remarks_stand_apart(
    command: Run, relora: dict[str, Any], written: Callable[..., Path]
) -> None:
    path = written(relora, **{"monitoring.wandb.entity": "somebody"})
    code, out, err = command(path)
    text, remarks = convert_config(path)
    assert (code, out) == (0, text)
    assert err.splitlines() == remarks
    assert "monitoring.wandb.entity: runs write metrics.jsonl; no tracker is configured in the file" in remarks


def test_a_configuration_is_written_once(
    command: Run, plain: dict[str, Any], written: Callable[..., Path], tmp_path: Path
) -> None:
    path, new = written(plain), tmp_path / "new.yaml"
    code, out, _ = command(path, "--out", new)
    assert (code, out) == (0, f"configuration in {new}\n")
    assert yaml.safe_load(new.read_text()) == yaml.safe_load(convert_config(path)[0])
    before = new.read_bytes()
    code, _, err = command(path, "--out", new)
    assert (code, err) == (2, f"pico-train: {new} exists already; choose another --out\n")
    assert new.read_bytes() == before


def test_mistakes_are_one_sentence(command: Run, written: Callable[..., Path], tmp_path: Path) -> None:
    code, out, err = command(written({"model": {"d_modle": 3}}))
    assert (code, out) == (2, "")
    assert err == (
        f'pico-train: {tmp_path / "old.yaml"} (read as pico-train): unknown key "model.d_modle"'
        ' (did you mean "model.d_model")\n'
    )
    assert command(tmp_path)[::2] == (
        2,
        f"pico-train: {tmp_path} is a checkpoint: name the directory to make with --out\n",
    )
    code, _, err = command(tmp_path / "odl.yaml")
    assert (code, "did you mean" in err) == (2, True)


def test_a_directory_that_is_no_checkpoint_is_named(command: Run, tmp_path: Path) -> None:
    code, out, err = command(tmp_path, "--out", tmp_path / "new")
    assert (code, out) == (2, "")
    assert err == f"pico-train: {tmp_path} is not an earlier Pico checkpoint: there is no config.json in it\n"
