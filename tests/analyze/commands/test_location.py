"""An analysis knows its source: two of one name never share a place, and each command finds its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from pico_analyze.commands import report_run, run_analysis
from pico_analyze.commands.compare import compare_runs
from pico_analyze.commands.location import find_analysis
from pico_analyze.config import checked
from pico_analyze.sources.open import open_source
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import AnalysisLayout

Q = "model.layers.0.self_attn.q_proj"
Measure = Callable[..., Path]


def write(folder: Path, factor: float, name: str = Q) -> Path:
    folder.mkdir(parents=True)
    codec.save_tensors(folder / "model.safetensors", {f"{name}.weight": factor * torch.eye(4)})
    return folder


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Measure:
    """`measure(path)` runs an analysis of the largest singular value and gives its table."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(path: Path | str, **options: object) -> Path:
        asked = {"run": str(path), "metrics": ["spectral_norm"], "figures": {"metrics": []}, **options}
        return run_analysis(checked(asked, "test"), "test", said.append)[0]

    return run


@pytest.fixture
def arms(tmp_path: Path) -> list[Path]:
    """Two series of one name, of largest singular values 1 and 100."""
    for name, factor in (("adam", 1.0), ("muon", 100.0)):
        write(tmp_path / name / "checkpoints" / "step0", factor)
    return [tmp_path / name / "checkpoints" for name in ("adam", "muon")]


def value(table: Path) -> float:
    return float(pd.read_parquet(table)["value"].iloc[0])


@pytest.mark.parametrize("out", [None, "o"])
def test_two_series_of_one_name_have_two_places(
    measure: Measure, arms: list[Path], said: list[str], out: str | None
) -> None:
    options = {} if out is None else {"out": out}
    tables = [measure(path, **options) for path in arms]
    assert [value(table) for table in tables] == [1.0, 100.0]
    assert any(f"is the analysis of {arms[0]}: this one is written to {tables[1].parent}" in line for line in said)
    assert [measure(path, **options) for path in reversed(arms)] == tables[::-1], "each finds its own again"
    place = Path(out) if out else None
    assert [find_analysis(open_source(path), "default", place).table for path in arms] == tables
    reports = [report_run(path, "default", place).read_text() for path in arms]
    assert [">100<" in report for report in reports] == [False, True]


def test_a_comparison_is_of_the_series_that_are_named(measure: Measure, arms: list[Path]) -> None:
    for path in arms:
        measure(path)
    compare_runs(arms, {}, Path("c"))
    assert set(pd.read_parquet("c/table.parquet")["difference"]) == {99.0}


def test_the_numbers_of_another_source_are_not_shown(measure: Measure, arms: list[Path]) -> None:
    measure(arms[0])
    with pytest.raises(UserError, match=r"is the analysis of .*adam.checkpoints and not of .*muon.checkpoints"):
        report_run(arms[1], "default")


def test_a_subset_has_a_place_of_its_own(measure: Measure, tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path / "m" / f"step{step}", step)
    tables = [measure(tmp_path / "m"), measure(f"{tmp_path}/m/step2*")]
    assert [len(pd.read_parquet(table)) for table in tables] == [2, 1]
    assert tables[0] != tables[1]


def test_the_same_source_by_another_way_to_write_its_path_replaces_its_analysis(
    measure: Measure, tmp_path: Path
) -> None:
    write(tmp_path / "m" / "step1", 1.0)
    assert measure(tmp_path / "m") == measure("../m") == measure(f"{tmp_path}/here/../m/")


def test_an_analysis_of_an_earlier_version_is_known_by_its_configuration(measure: Measure, arms: list[Path]) -> None:
    tables = [measure(os.path.relpath(arms[0]))]
    AnalysisLayout(tables[0].parent).source.unlink()
    tables += [measure(path) for path in arms]
    assert tables[0] == tables[1] != tables[2]


@pytest.mark.parametrize(
    "name", ["a." + "b" * 226 + ".q_proj", "模型包装器." * 40 + "layers.0.q_proj"], ids=["long", "cjk"]
)
def test_a_long_name_of_a_module_is_measured_and_kept(measure: Measure, tmp_path: Path, name: str) -> None:
    write(tmp_path / "m" / "step0", 2.0, name)
    table = measure(tmp_path / "m")
    assert pd.read_parquet(table)["module"].tolist() == [name]
    kept = [path.name for path in AnalysisLayout(table.parent).cache.iterdir()]
    assert len(kept) == 1
    assert len(kept[0].encode()) <= 143 - len(".tmp--01234567"), "file systems allow as few as 143 bytes"


@pytest.mark.parametrize(
    "name", ["模型.q_proj", "ꙮ.q_proj", "мо\u0301дель.q_proj", "a\x1b[31m.q_proj", "a\x00\u2028.q_proj", "$x_{$.q_proj"]
)
def test_any_script_is_drawn_without_a_warning(measure: Measure, tmp_path: Path, name: str) -> None:
    """Warnings are errors here; matplotlib warns of each character that no font has."""
    write(tmp_path / "m" / "step0", 2.0, name)
    table = measure(tmp_path / "m", figures={"metrics": ["spectral_norm"], "formats": ["png", "svg"]})
    assert len(list(AnalysisLayout(table.parent).figures.iterdir())) == 4
