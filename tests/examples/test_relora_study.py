"""The ReLoRA study runs from its data to its figures, on updates by the handful; its intervals are Student's."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pico_analyze import statistics
from pico_train.config import load
from pico_train.data.prepare import PrepareConfig, prepare
from scipy import stats

STUDY = Path(__file__).resolve().parents[2] / "examples" / "relora"
PAGE = STUDY.parents[1] / "docs" / "studies" / "relora.md"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The study's modules by name, imported as the script does."""
    monkeypatch.syspath_prepend(str(STUDY))
    names = ("plan", "results", "tables", "figures", "faults")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def test_intervals_and_what_can_be_detected_are_those_of_the_house(module: dict[str, ModuleType]) -> None:
    tables = module["tables"]
    arms = ["full"] * 3 + ["relora"] * 3
    table = pd.DataFrame({"arm": arms, "seed": [0, 1, 2] * 2, "value": [1.0, 2.0, 3.0, 1.5, 2.4, 3.6]})
    found = tables.contrast(table, "relora")
    theirs = stats.ttest_rel([1.5, 2.4, 3.6], [1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(0.5)
    assert found.interval == (pytest.approx(theirs.confidence_interval().low), pytest.approx(0.748, abs=1e-3))
    assert found.p == pytest.approx(theirs.pvalue)
    power = statistics.power(found.detectable / np.std([0.5, 0.4, 0.6], ddof=1), 3)
    assert power == pytest.approx(0.8)
    one = tables.contrast(table[table["seed"] == 0], "relora")
    assert (one.interval, one.p, one.detectable) == (None, None, None)
    assert tables.contrast(table[table["arm"] == "full"], "relora") is None
    assert tables.Contrast(np.full(3, -45.3)).is_constant


def test_verdicts_are_of_the_primary_outcome_alone_and_adjusted(module: dict[str, ModuleType]) -> None:
    tables = module["tables"]
    shifts = {"full": (0, 0, 0), "relora": (0.30, 0.35, 0.40), "relora_published": (0.1, 0.3, 0.35), "hybrid": (0.2,)}
    rows = [
        {"arm": arm, "width": width, "seed": seed, "value": 3 + 0.1 * seed + shift}
        for width in (64, 96)
        for arm, by_seed in shifts.items()
        for seed, shift in enumerate(by_seed)
    ]
    table = pd.DataFrame(rows)
    lines = [line.split(" | ") for line in tables.primary_table(table, list(shifts))][2:]
    adjusted = statistics.holm([tables.contrast(table[table["width"] == 64], arm).p for arm in list(shifts)[1:3]] * 2)
    relora, published = lines[1], lines[2]
    assert [relora[6], published[6]] == [tables._number(adjusted[0]), tables._number(adjusted[1])]
    assert [line[7] for line in lines[:4]] == ["", "higher", "undecided", "none (one seed)"]
    others = "\n".join(tables.outcome_table(table, list(shifts)))
    assert "verdict" not in others
    assert "higher" not in others
    assert "+0.2 (one seed)" in others


def test_the_page_says_what_its_tables_say(module: dict[str, ModuleType]) -> None:
    """p, verdicts and detectable differences follow from the intervals, and numbers of the prose are in a table."""
    tables = module["tables"]
    page = PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| (64|96) \| ", line)]
    primary = [row for row in rows if len(row) == 10]
    contrasts = [_from_interval(tables, row[4]) for row in primary]
    tested = [(row, against) for row, against in zip(primary, contrasts, strict=True) if against is not None]
    assert len(tested) == 4
    for (row, against), adjusted in zip(tested, statistics.holm([a.p for _, a in tested]), strict=True):
        said = [tables._number(against.p), tables._number(adjusted), tables.verdict(against, adjusted)]
        assert [*said, tables._detectable(against)] == row[5:9]
    for row in rows:
        for place in (4, 6) if len(row) == 8 else ():
            against = _from_interval(tables, row[place])
            assert against is None or tables._detectable(against) == row[place + 1].removesuffix(" |")
    prose = page[page.index("**Which published findings") : page.index("**What cannot be said")]
    numbers = [float(text) for row in rows for text in re.findall(r"\d+\.?\d*", " ".join(row))]
    for text in re.findall(r"(?<![\w.])\d+\.\d+(?!\w)", prose):
        decimals = len(text.partition(".")[2])
        assert any(abs(n - float(text)) <= 0.5000001 * 10**-decimals for n in numbers), f"{text} is in no table"


def _from_interval(tables: ModuleType, cell: str) -> Any:
    """Three differences with the mean and the interval that a table shows, None where it shows none."""
    found = re.fullmatch(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)( \|)?", cell)
    if found is None:
        return None
    mean, low, high = (float(found[place]) for place in (1, 2, 3))
    deviation = (high - low) / 2 / stats.t.ppf(0.975, 2) * 3**0.5
    return tables.Contrast(mean + deviation * np.array([-1.0, 0.0, 1.0]))


def test_signatures_of_the_faults_are_numbers_of_a_table(module: dict[str, ModuleType]) -> None:
    steps = range(1, 8)
    moves = [1.0, 1.1, 1.2, 50.0, 1.0, 1.0, 70.0]  # a merge every 3 updates
    rows = [{"arm": "relora", "step": s, "loss": 5 - s / 10, "moved": s, "first": moves[s - 1]} for s in steps]
    assert list(module["tables"].signature_table(pd.DataFrame(rows), 3))[2:] == ["| relora | 4.800, 4.700 | 2 | 70.0 |"]
    short = list(module["tables"].signature_table(pd.DataFrame(rows), 7))
    assert short[2:] == ["| relora | no merge within the run |  |  |"]


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
    assert said.count("none (one seed)") == 7
    assert "validation loss, nats, by step" in said
    assert "signatures of the faults" in said
    assert "minimal pairs, accuracy" in said
    again = subprocess.run([*command, "--report"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert (results / "summary.md").read_text(encoding="utf-8") == said
