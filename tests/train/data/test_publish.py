"""A prepared directory: kept, refused where settings or sources changed, and whole or not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pico_contract.errors import UserError
from pico_contract.layout import temporary
from pico_train.data import publish
from pico_train.data.prepare import prepare

from .conftest import Make, settings

DOCUMENTS = [f"The king of the castle, number {i}, speaks." for i in range(40)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("%%".join(DOCUMENTS))
    return path


@pytest.fixture
def source(text: Path) -> dict[str, str]:
    return {"path": str(text), "separator": "%%"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_prepared_already_is_kept(make: Make, source: dict[str, str], tmp_path: Path) -> None:
    data = make(source)
    before = {path: path.stat().st_mtime_ns for path in data.path.iterdir()}
    said: list[str] = []
    prepare(settings(source, data.path, {}), said.append)
    assert {path: path.stat().st_mtime_ns for path in data.path.iterdir()} == before
    compared = "its source has not changed since, by size and time"
    assert said == [f"{data.path} is prepared already ({compared}); delete it to prepare it again"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seq_len": 4}, "seq_len 8 -> 4"),
        ({"seed": 3}, "seed 0 -> 3"),
        ({"tokenizer": {"vocab_size": 290}}, "tokenizer.vocab_size 280 -> 290"),
    ],
)
def test_other_settings_do_not_overwrite_data(
    make: Make, source: dict[str, str], change: dict[str, Any], named: str
) -> None:
    data = make(source)
    before = contents(data.path)
    with pytest.raises(UserError, match=rf"was made with other settings \({named}\): choose another `out`, or"):
        make(source, **change)
    assert contents(data.path) == before


def test_a_directory_of_another_kind_is_not_overwritten(make: Make, source: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a data directory"):
        make(source)
    assert (tmp_path / "packed" / "thesis.tex").read_text() == "years of work"


def again(source: Any, out: Path, **changes: Any) -> list[str]:
    """What a second preparation says."""
    said: list[str] = []
    prepare(settings(source, out, changes), said.append)
    return said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("longer", r"made before .*text\.txt changed: delete .*packed to make it of what is there now"),
        ("altered", r"made before .*text\.txt changed: "),
        ("touched", None),
    ],
)
def test_a_source_that_changed_since_is_said(
    make: Make, text: Path, source: dict[str, str], change: str, sentence: str | None
) -> None:
    data, before = make(source), text.read_text()
    if change == "longer":
        text.write_text(before + "%%One more.")
    else:
        text.write_text(before.replace("king", "kong") if change == "altered" else before)
    os.utime(text, ns=(1, 1))
    if sentence is None:
        assert "its source has not changed since" in again(source, data.path)[0]
        return
    with pytest.raises(UserError, match=sentence):
        again(source, data.path)
    assert make(source, "new").manifest.fingerprint != data.manifest.fingerprint


@pytest.mark.parametrize(
    ("change", "sentence"), [("added", r"before .*c\.txt was there"), ("removed", r"before .*b\.txt went")]
)
def test_files_of_a_directory_that_came_or_went_are_said(
    make: Make, tmp_path: Path, change: str, sentence: str
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(" ".join(DOCUMENTS))
    data = make(folder)
    if change == "added":
        (folder / "c.txt").write_text("more")
    else:
        (folder / "b.txt").unlink()
    with pytest.raises(UserError, match=sentence):
        again(folder, data.path)


def test_sources_of_validation_and_tokenizer_are_compared_too(make: Make, text: Path, source: dict[str, str]) -> None:
    held_out = text.with_name("held_out.txt")
    held_out.write_text(" ".join(DOCUMENTS))
    data = make(source, validation_source=str(held_out))
    recorded = [Path(entry.path).name for entry in data.manifest.source_files or ()]
    assert recorded == ["text.txt", "held_out.txt"]
    held_out.write_text("changed")
    with pytest.raises(UserError, match=r"made before .*held_out.txt changed"):
        again(source, data.path, validation_source=str(held_out))


def test_what_is_not_compared_is_said(make: Make, text: Path, source: dict[str, str]) -> None:
    data = make(source)
    text.rename(text.with_name("away.txt"))
    assert "a file of its source is no longer there, so that it is not compared" in again(source, data.path)[0]
    manifest = json.loads((data.path / "data.json").read_text())
    del manifest["source_files"], manifest["token_bytes"]  # as earlier versions wrote it
    for info in manifest["splits"].values():
        del info["tail"], info["blocks"]
    manifest.pop("digest", None)
    (data.path / "data.json").write_text(json.dumps(manifest))
    assert "an earlier version made it, so that its source is not compared" in again(source, data.path)[0]


def test_what_an_interrupted_preparation_left_is_removed(make: Make, source: dict[str, str], tmp_path: Path) -> None:
    """That of this name alone, and none that a process still writes."""
    dead, alive = (temporary(tmp_path / "packed", tag) for tag in ("0123abcd", "4567abcd"))
    other, file = temporary(tmp_path / "packed-2", "0123abcd"), tmp_path / ".tmp-packed-notes"
    for path in (dead, alive, other):
        path.mkdir()
    file.write_text("mine")
    said: list[str] = []
    with publish._claimed(alive):
        prepare(settings(source, tmp_path / "packed", {}), said.append)
    assert not dead.exists()
    assert all(path.exists() for path in (alive, other, file))
    assert f"removed {dead}, which an interrupted preparation left" in said
    assert any(line.startswith(f"{alive} is another preparation") for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "left"), [(signal.SIGTERM, 0), (signal.SIGKILL, 1)])
def test_a_preparation_that_is_killed(tmp_path: Path, number: signal.Signals, left: int) -> None:
    """SIGTERM leaves nothing, with its usual exit code; what SIGKILL leaves, the next preparation removes."""
    (tmp_path / "big.txt").write_text("\n\n".join(DOCUMENTS * 20_000))
    (tmp_path / "small.txt").write_text("\n\n".join(DOCUMENTS))
    program = "import sys; from pico_train.cli import main; sys.argv[0] = 'pico-train'; main()"
    arguments = ['source.separator="\\n\\n"', "out=out", "seq_len=8", "tokenizer.vocab_size=280"]
    command = [sys.executable, "-c", program, "data", "prepare", "source.path=big.txt", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob(".tmp-out-*/train.rows.bin")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) in (128 + number, -number)
    assert len(list(tmp_path.glob(".tmp-out-*"))) == left
    prepare(settings({"path": str(tmp_path / "small.txt"), "separator": "\n\n"}, tmp_path / "out", {}))
    assert not list(tmp_path.glob(".tmp-out-*"))
