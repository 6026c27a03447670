"""benchmarks/gpu.py runs from end to end at tiny sizes, also on a machine that lacks what runs and peers need."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
BLOCKING = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
sys.argv = ["gpu.py", "--dry", *{arguments!r}]
sys.path.insert(0, {folder!r})
runpy.run_path({script!r}, run_name="__main__")
"""
RUNS = ["medium checkpoint and snapshot", "tiny run stopped and continued"]
PEERS = ["medium transformers compiled", "large transformers compiled"]


def run_script(*arguments: str, blocked: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The first line, measurement -> its line, and the table."""
    folder = ROOT / "benchmarks"
    code = BLOCKING.format(blocked=blocked, arguments=arguments, folder=str(folder), script=str(folder / "gpu.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    objects = [json.loads(line) for line in lines if line.startswith("{")]
    rest = "\n".join(line for line in lines if not line.startswith("{"))
    return objects[0], {line.pop("measurement"): line for line in objects[1:]}, rest


def test_every_measurement_prints_a_line_and_the_table_ends_the_output() -> None:
    first, found, table = run_script()
    assert first["dry"] is True
    assert list(found)[:2] == ["correctness fp32", "correctness bf16"]
    assert all("skipped" not in line and "failed" not in line for line in found.values()), found
    assert found["correctness fp32"]["holds"]
    assert found["correctness fp32"]["plain"]["gradient_error"] < 1e-5
    assert found["medium compiled"]["tokens_per_second"] > 0
    assert found["medium compiled"]["mfu"] is None  # the peak of a CPU is not known
    for name in ("resume", "tiny run stopped and continued"):
        assert found[name]["bit_identical"], name
    assert found["medium checkpoint and snapshot"]["bytes"] > 100_000
    assert [line.split("  ")[0] for line in table.splitlines()] == ["measurement", *found]


def test_what_is_not_installed_costs_its_own_measurements_alone() -> None:
    _, found, _ = run_script(blocked=("pydantic", "datasets", "transformers"))
    assert [name for name, line in found.items() if "skipped" in line] == [*PEERS, *RUNS]
    assert all("failed" not in line for line in found.values()), found
    for name in PEERS:
        assert found[name]["skipped"] == "transformers cannot be imported: No module named 'transformers'"
    for name in RUNS:
        assert found[name]["skipped"] == "runs need pydantic, which is not installed"


def test_a_measurement_begins_only_where_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    at = gpu.Setting(False, torch.device("cpu"))
    one = gpu.Measurement("large", 45, lambda: {"rows": 3})
    assert gpu.measured(at, one, 44.4) == {"skipped": "44 s are left, and it may take 45"}
    assert gpu.measured(at, one, 46.0)["rows"] == 3
    broken = gpu.Measurement("broken", 1, lambda: {}["rows"])
    assert gpu.measured(at, broken, 46.0) == {"failed": "KeyError: 'rows'"}


@pytest.mark.parametrize("name", ["tiny", "small", "medium", "large"])
def test_the_sizes_are_those_of_the_suite(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    shape = gpu.Setting(False, torch.device("cpu")).shape(name)
    config = yaml.safe_load((ROOT / f"pico-train/configs/pico-decoder-{name}.yaml").read_text())["model"]
    assert {key: getattr(shape, key) for key in config} == config
