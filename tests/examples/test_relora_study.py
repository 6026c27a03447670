"""The ReLoRA study runs from its data to its figures, on updates by the handful; its intervals are Student's."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from pico_train.config import load
from pico_train.data.prepare import PrepareConfig, prepare

STUDY = Path(__file__).resolve().parents[2] / "examples" / "relora"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The study's modules by name, imported as the script does."""
    monkeypatch.syspath_prepend(str(STUDY))
    names = ("plan", "results", "figures", "faults")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def test_intervals_and_what_can_be_detected(module: dict[str, ModuleType]) -> None:
    """Of three seeds t has two degrees of freedom, whose quantiles are (2p - 1) sqrt(2 / (1 - (2p - 1)^2))."""

    def quantile(p: float) -> float:
        return (2 * p - 1) * (2 / (1 - (2 * p - 1) ** 2)) ** 0.5

    table = pd.DataFrame(
        {"arm": ["full"] * 3 + ["relora"] * 3, "seed": [0, 1, 2] * 2, "value": [1.0, 2.0, 3.0, 1.5, 2.4, 3.6]}
    )
    found = module["results"].contrast(table, "relora")
    error = np.std([0.5, 0.4, 0.6], ddof=1) / 3**0.5
    assert found.mean == pytest.approx(0.5)
    assert found.half_width == pytest.approx(quantile(0.975) * error)
    assert found.detectable == pytest.approx((quantile(0.975) + quantile(0.8)) * error)
    assert found.verdict == "higher"
    wide = module["results"].Contrast(np.array([0.5, -0.4, 0.2]))
    assert wide.verdict.startswith("undecided (detectable: ")
    assert module["results"].Contrast(np.zeros(3)).verdict == "equal"
    one = module["results"].contrast(table[table["seed"] == 0], "relora")
    assert (one.half_width, one.verdict) == (None, "no verdict (one seed)")
    assert module["results"].contrast(table[table["arm"] == "full"], "relora") is None


def test_arms_differ_from_the_baseline_in_the_method_alone(module: dict[str, ModuleType], tmp_path: Path) -> None:
    runs = module["plan"].planned("full", tmp_path)
    assert len(runs) == len({run.config.name for run in runs}) == 28
    for run in runs:
        same = run.config.model_copy(update={"method": runs[0].config.method, "name": "", "runs_dir": tmp_path})
        other = next(r for r in runs if (r.arm, r.width, r.seed) == ("full", run.width, run.seed))
        assert same == other.config.model_copy(update={"name": "", "runs_dir": tmp_path})
        assert (run.arm == "full") == (run.config.method.name == "plain")


def test_the_published_curves_are_drawn_with_their_labels_put_right(
    module: dict[str, ModuleType], tmp_path: Path
) -> None:
    assert module["figures"].published_curves(tmp_path / "published.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_whole_of_it(tmp_path: Path) -> None:
    (tmp_path / "plays.txt").write_text("\n\n".join(f"Scene {i}. The king speaks to the fool. " * 8 for i in range(90)))
    given = [
        f'source={{path: {tmp_path / "plays.txt"}, separator: "\\n\\n"}}',
        f"out={tmp_path / 'packed'}",
        "seq_len=32",
    ]
    prepare(load(PrepareConfig, None, [*given, "tokenizer.vocab_size=300", "validation_fraction=0.2"]))
    sentences = {"sentence_good": "The king speaks.", "sentence_bad": "The kings speaks."}
    pair = json.dumps({**sentences, "UID": "p", "linguistics_term": "q"})
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "p.jsonl").write_text(f"{pair}\n" * 4)
    short = [f"{key}.every=4" for key in ("snapshot", "checkpoint", "checkpoint.keep", "evaluate")]
    options = ["data.path=packed", "train.steps=8", "train.batch_size=2", "schedule.warmup_steps=2", *short]
    command = [sys.executable, str(STUDY / "study.py"), "quick", "--blimp", "pairs", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "runs" / "relora" / "quick" / "results"
    made = ["losses.png", "dynamics.png", "faults.png", "published.png", "ranks-64.png"]
    assert all((results / name).stat().st_size > 10_000 for name in made)
    said = (results / "summary.md").read_text(encoding="utf-8")
    assert said.count("no verdict (one seed)") > 7
    assert "minimal pairs, accuracy" in said
    again = subprocess.run([*command, "--report"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert (results / "summary.md").read_text(encoding="utf-8") == said
