"""The commands on what other programs wrote: measured like a run, with results beside and nothing written into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze.table import read
from pico_contract import codec

from ...support.command_line import Command

LinesOf = Callable[..., tuple[int, list[str], str]]
MODULES = ("v_proj", "o_proj")


@pytest.fixture
def command(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LinesOf:
    """`command("run", path)` -> exit code, lines of stdout, stderr of `pico-analyze run path` in a directory `here`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: Any) -> tuple[int, list[str], str]:
        code, out, err = command(*arguments)
        return code, out.splitlines(), err

    return call


def weight(step: int, name: str) -> torch.Tensor:
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(step + MODULES.index(name)))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for step in (1, 2):
        folder = tmp_path / "models" / f"step{step}"
        folder.mkdir(parents=True)
        tensors = {f"model.layers.0.self_attn.{name}.weight": weight(step, name) for name in MODULES}
        codec.save_tensors(folder / "model.safetensors", tensors)
    return tmp_path / "models"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    for step in (1, 2):
        folder = tmp_path / "older" / "checkpoints" / f"step_{step}" / "learning_dynamics"
        folder.mkdir(parents=True)
        held = {f"_forward_module.layers.0.attention.{name}": weight(step, name) for name in MODULES}
        torch.save(held, folder / "val_weights.pt")
    return tmp_path / "older"


def listed(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("what", ["models", "older"])
def test_results_lie_in_the_directory_of_the_caller(command: LinesOf, what: str, request: Any, tmp_path: Path) -> None:
    source = request.getfixturevalue(what)
    before = listed(source)
    code, written, _ = command("run", source, "metrics=[frobenius_norm]", "components=['*_proj']")
    assert code == 0
    root = tmp_path / "here" / "analysis" / what / "default"
    assert {str(path) for path in map(Path.resolve, map(Path, written))} >= {
        str(root / name) for name in ("table.parquet", "table.csv", "report.html")
    }
    table = read(root / "table.parquet")
    row = table[(table["step"] == 2) & (table["component"] == "self_attn.v_proj")]
    assert row["value"].tolist() == pytest.approx([float(weight(2, "v_proj").double().norm())], rel=1e-12)
    assert set(table["run"]) == {what}
    assert listed(source) == before, "nothing is written into what another program wrote"


@pytest.mark.parametrize("renamed", [None, "gpt.h.3.dense"])
def test_a_series_without_a_configuration_is_measured_by_default(
    command: LinesOf, models: Path, renamed: str | None
) -> None:
    """Whatever its projections are called; circuits need to know the heads."""
    for step in (1, 2) if renamed else ():
        codec.save_tensors(models / f"step{step}" / "model.safetensors", {f"{renamed}.weight": weight(step, "o_proj")})
    code, _, err = command("run", models, "figures.metrics=[]")
    assert (code, [line for line in err.splitlines() if "warning" in line]) == (0, [])
    table = read(Path("analysis/models/default/table.parquet"))
    assert set(table["component"]) == ({"dense"} if renamed else {"self_attn.o_proj", "self_attn.v_proj"})
    assert set(table["layer"]) == ({3} if renamed else {0})


@pytest.mark.parametrize("how", ["glob", "yaml"])
def test_a_series_is_named_by_a_glob_or_in_a_configuration(command: LinesOf, models: Path, how: str) -> None:
    given = str(models / "step*")
    if how == "yaml":
        Path("some.yaml").write_text(f"run: [{models / 'step1'}, {models / 'step2'}]\n")
        given = "some.yaml"
    code, _, _ = command("run", given, "metrics=[per]", "figures.metrics=[]", "name=mine", "components=['*_proj']")
    assert code == 0
    assert sorted(set(read(Path("analysis/models/mine/table.parquet"))["step"])) == [1, 2]


def test_plot_and_report_find_it_and_out_puts_it_elsewhere(command: LinesOf, models: Path, tmp_path: Path) -> None:
    small = ("metrics=[per]", "figures.metrics=[]", "components=['*_proj']")
    assert command("run", models, *small)[0] == 0
    assert command("plot", models, "--metric", "per")[0] == 0
    assert command("report", models)[0] == 0
    code, _, err = command("plot", models, "--out", tmp_path / "elsewhere")
    assert code == 2
    assert "elsewhere" in err
    assert command("run", models, *small, f"out={tmp_path / 'elsewhere'}")[0] == 0
    assert (tmp_path / "elsewhere" / "analysis" / "default" / "report.html").is_file()
    code, written, _ = command("plot", models, "--metric", "per", "--out", tmp_path / "elsewhere")
    assert code == 0
    assert all(Path(path).is_relative_to(tmp_path / "elsewhere") for path in written)


def test_out_holds_the_analysis_of_a_run_of_ours_too(command: LinesOf, layout: Any, tmp_path: Path) -> None:
    small = ("metrics=[per]", "components=[v_proj]", "kinds=[weights]", "figures.metrics=[]")
    assert command("run", layout.root, *small, f"out={tmp_path / 'elsewhere'}")[0] == 0
    assert (tmp_path / "elsewhere" / "analysis" / "default" / "table.csv").is_file()
    assert not layout.analysis("default").root.exists()


def test_inspect_says_what_it_holds(command: LinesOf, models: Path, older: Path) -> None:
    code, lines, _ = command("inspect", models)
    assert code == 0
    assert lines[0] == "run models"
    assert "weights at 2 steps: self_attn.o_proj, self_attn.v_proj" in lines
    assert command("inspect", older)[1][2] == "observed steps (2): 1, 2"


def test_a_directory_that_is_nothing_is_one_sentence(command: LinesOf, tmp_path: Path) -> None:
    code, _, err = command("run", tmp_path)
    assert code == 2
    assert "is neither a run" in err
    assert len(err.splitlines()) == 1
