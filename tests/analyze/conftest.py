"""Synthetic runs, and the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_analyze import open_run
from pico_analyze.cli import main
from pico_analyze.sources.run import Run
from pico_analyze.table import read
from pico_contract import codec
from pico_contract.layout import MANIFEST, RunLayout

from ..support.command_line import Command, command_line
from ..support.synthetic_run import Shape, write_run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("run", path)` -> exit code, stdout, stderr of `pico-analyze run path`."""
    return command_line("pico-analyze", main, monkeypatch, capsys)


@pytest.fixture
def shape() -> Shape:
    return Shape()


@pytest.fixture
def layout(tmp_path: Path, shape: Shape) -> RunLayout:
    """A small intact run of three steps, written for this test alone."""
    return write_run(tmp_path / "small", shape)


@pytest.fixture
def run(layout: RunLayout) -> Run:
    return open_run(layout.root)


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Run]:
    """`new_run(shape, steps)` writes and opens a run called `new`."""

    def make(shape: Shape | None = None, steps: tuple[int, ...] = (0, 1, 2)) -> Run:
        return open_run(write_run(tmp_path / "new", shape or Shape(), steps).root)

    return make


@pytest.fixture
def make_shape() -> type[Shape]:
    return Shape


@pytest.fixture
def rewrite() -> Callable[[Path, Callable[[torch.Tensor], torch.Tensor]], None]:
    """`rewrite(file, change)` applies `change` to each tensor of a file, whose directory stays intact."""

    def apply(file: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        codec.save_tensors(file, {name: change(tensor) for name, tensor in codec.read_tensors(file).items()})
        manifest = file.with_name(MANIFEST)
        raw = json.loads(manifest.read_text())
        raw["files"][file.name] = {"size": file.stat().st_size, "sha256": codec.sha256_file(file)}
        manifest.write_text(json.dumps(raw))

    return apply


@pytest.fixture
def runs(command: Command, layout: RunLayout, tmp_path: Path) -> list[Path]:
    """Four measured runs, seeds 0 and 1 of two arms; the PER of the last two is 1, 2, ... percent larger by step."""
    command("run", layout.root, "metrics=[per]", "components=[v_proj]", "kinds=[weights]", "figures.metrics=[]")
    found = []
    for index in range(4):
        root = tmp_path / f"run{index}"
        shutil.copytree(layout.root, root)
        manifest = json.loads(layout.manifest.read_text()) | {"name": root.name, "seeds": {"init": index % 2}}
        RunLayout(root).manifest.write_text(json.dumps(manifest))
        place = RunLayout(root).analysis("default").table
        frame = read(place)
        frame["value"] *= 1 + 0.01 * (frame["step"] + 1) * (index // 2) + 0.001 * (index % 2)
        frame.to_parquet(place, index=False)
        found.append(root)
    return found
