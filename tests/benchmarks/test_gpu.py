"""benchmarks/gpu.py works before it meets a GPU: with tiny sizes here, and where packages are missing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "benchmarks" / "gpu.py"
WITHOUT = """
import runpy, sys

class Missing:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("pydantic", "datasets", "transformers", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def measured(*command: str, **environment: str) -> dict[str, dict[str, Any]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["measurement"]: line for line in lines}


@pytest.mark.slow
def test_it_runs_where_nothing_but_torch_is_installed(tmp_path: Path) -> None:
    found = measured("-c", WITHOUT, str(PROGRAM), "--dry", OUT=str(tmp_path))
    assert [name for name, line in found.items() if "failed" in line] == []
    assert found["correctness"]["fp32"]["right"] is found["correctness"]["bf16"]["right"] is True
    assert found["ours large"]["tokens_per_second"] > 0
    assert found["transformers large"]["left_out"] == "transformers is not installed here"
    assert "is not installed here" in found["snapshot cost small"]["left_out"]
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == len(found)


@pytest.mark.slow
def test_it_measures_everything_where_all_is_installed(tmp_path: Path) -> None:
    found = measured(str(PROGRAM), "--dry", OUT=str(tmp_path))
    assert [name for name, line in found.items() if "failed" in line or "left_out" in line] == []
    assert found["transformers medium"]["tokens_per_second"] > 0
    assert found["resume identity tiny"]["resumed_equals_whole"] is True
    assert found["checkpoint cost large"]["written_s"] > 0
    assert found["largest micro-batch large"]["rows"] == 4


@pytest.fixture
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_what_no_longer_fits_into_the_time_is_named(gpu: ModuleType) -> None:
    clock = gpu.Clock(0.1, None)
    clock.measure("long", 60, lambda: {"never": "run"})
    assert clock.lines == [{"measurement": "long", "left_out": "needs about 60 s of the 6 s left"}]


def test_one_that_fails_costs_itself_alone(gpu: ModuleType) -> None:
    clock = gpu.Clock(7, None)
    clock.measure("bad", 1, lambda: 1 / 0)
    clock.measure("good", 1, lambda: {"value": 2})
    assert [line.get("failed", "-")[:17] for line in clock.lines] == ["ZeroDivisionError", "-"]


def test_a_wrong_gradient_is_seen(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose attention is off by one percent."""
    found = gpu.correctness(gpu.DRY, torch.device("cpu"), 16, compiled=False)
    assert not gpu.is_wrong(found)
    initialised, count = gpu.initialised, iter(range(10))

    def off(config: Any) -> Any:
        model = initialised(config)
        if next(count) > 0:  # the first is the truth on CPU
            model.model.layers[0].self_attn.v_proj.weight.data *= 1.2
        return model

    monkeypatch.setattr(gpu, "initialised", off)
    assert gpu.is_wrong(gpu.correctness(gpu.DRY, torch.device("cpu"), 16, compiled=False))


def test_rows_are_halved_until_they_fit(gpu: ModuleType) -> None:
    setting = gpu.Setting(torch.device("cpu"), 1e12, seq_len=4, warm_up=1, least=2, seconds=0.0, compiles=False)
    tried = []

    def step(ids: torch.Tensor) -> None:
        tried.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("no room")

    assert gpu.throughput(lambda: step, setting, gpu.DRY, 8)["rows"] == 2
    assert tried[:3] == [8, 4, 2]
