"""What a session records of its code and files, and what a resume says of what changed since."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pico_contract import codec
from pico_contract.layout import RunLayout
from pico_contract.provenance import CodeState
from pico_train import train
from pico_train.run import RunConfig
from pico_train.trainer import manifest as recording

Tiny = Callable[..., RunConfig]
METHOD = "from pico_train.method.plain import Plain\nfrom helper_of_mine import SCALE\nclass Mine(Plain):\n    pass\n"
LITTLE = {"snapshot.every": 0, "evaluate.every": 0, "train.steps": 4, "checkpoint.every": 2}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a method of the user's own and a module that it imports."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "helper_of_mine.py").write_text("SCALE = 1\n")
    (folder / "method_of_mine.py").write_text(METHOD)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield folder
    for name in ("helper_of_mine", "method_of_mine"):
        sys.modules.pop(name, None)


@pytest.fixture
def stopped(own: Path, tiny: Tiny) -> RunConfig:
    """A run by that method which would be continued from step 2."""
    config = tiny(**LITTLE, **{"method.name": "method_of_mine:Mine"})
    train(config, quiet=True)
    shutil.rmtree(config.layout.checkpoint(4))
    return config


def sessions(layout: RunLayout) -> list[dict[str, Any]]:
    return list(json.loads(layout.manifest.read_text())["sessions"])


def resumed(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    train(config)
    return capsys.readouterr().out.splitlines()


def test_own_modules_are_recorded_with_what_they_import(stopped: RunConfig, own: Path) -> None:
    assert sessions(stopped.layout)[0]["modules"] == {
        name: codec.sha256_file(own / f"{name}.py") for name in ("helper_of_mine", "method_of_mine")
    }


def test_nothing_is_said_where_nothing_changed(stopped: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    lines = resumed(stopped, capsys)
    assert lines[0] == f"continuing {stopped.layout.root} from step 2"
    assert not [line for line in lines if "changed" in line or "warning" in line]


def test_a_changed_module_is_said(stopped: RunConfig, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = codec.sha256_file(own / "helper_of_mine.py")[:12]
    (own / "helper_of_mine.py").write_text("SCALE = 2\n")
    after = codec.sha256_file(own / "helper_of_mine.py")[:12]
    assert f"your module helper_of_mine changed: {before} -> {after}" in resumed(stopped, capsys)


CODE = {
    "commit": (CodeState("a" * 40, False, None), CodeState("b" * 40, False, None)),
    "edited": (CodeState("a" * 40, False, None), CodeState("a" * 40, True, "d" * 64)),
    "installed": (CodeState("a" * 40, False, None), CodeState()),
}
SAID = {
    "commit": ["the code's commit changed: aaaaaaaaaaaa -> bbbbbbbbbbbb"],
    "edited": ["the code's working tree changed: as committed -> edited (dddddddddddd)"],
    "installed": ["the code's commit changed: aaaaaaaaaaaa -> none"],
}


@pytest.mark.parametrize("kind", CODE)
def test_changed_code_is_said_in_one_line(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    before, now = CODE[kind]
    config = tiny(**LITTLE)
    monkeypatch.setattr(recording, "code_state", lambda package: before)
    train(config, quiet=True)
    shutil.rmtree(config.layout.checkpoint(4))
    monkeypatch.setattr(recording, "code_state", lambda package: now)
    assert [line for line in resumed(config, capsys) if " changed: " in line] == SAID[kind]
    found = [(one["commit"], one["dirty"], one["difference"]) for one in sessions(config.layout)]
    assert found == [(one.commit, one.dirty, one.difference) for one in (before, now)]


def test_changed_packages_are_said_one_a_line() -> None:
    before = {"commit": None, "packages": {"torch": "2.10", "numpy": "2.4"}}
    now = {"commit": None, "difference": None, "modules": {}, "packages": {"torch": "2.11", "numpy": "2.4"}}
    assert recording.changed_code(before, now) == ["the package torch changed: 2.10 -> 2.11"]


EDITS: dict[str, Callable[[RunLayout], Any]] = {
    "run.json": lambda layout: layout.manifest.write_text(
        layout.manifest.read_text().replace('"created": "2', '"created": "1')
    ),
    "config.yaml": lambda layout: layout.config.write_text(layout.config.read_text() + "# mine\n"),
    "probe.safetensors": lambda layout: layout.probe.write_bytes(layout.probe.read_bytes()[:-1] + b"\7"),
    "metrics.jsonl": lambda layout: layout.metrics.write_text(
        layout.metrics.read_text().replace('"loss": ', '"loss": 1', 1)
    ),
}


@pytest.mark.parametrize("file", EDITS)
def test_an_edited_file_is_said_before_the_run_goes_on(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    config = tiny(**LITTLE)
    train(config, quiet=True)
    shutil.rmtree(config.layout.checkpoint(4))
    EDITS[file](config.layout)
    warnings = [line for line in resumed(config, capsys) if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: {config.layout.root / file} ")


def test_digests_are_those_of_the_files(stopped: RunConfig) -> None:
    layout = stopped.layout
    digests = json.loads(layout.manifest.read_text())["digests"]
    assert digests == {path.name: codec.sha256_file(path) for path in (layout.config, layout.probe)}
