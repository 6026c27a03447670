"""Arms of real tiny runs, trained and measured here, are compared with the sentences that they deserve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from pico_analyze import measure, open_run
from pico_analyze import table as tables
from pico_analyze.commands.compare import compare_runs
from pico_contract.layout import RunLayout
from pico_train import train
from pico_train.config import load
from pico_train.data.prepare import PrepareConfig, prepare

CONFIG = """
data: {path: packed}
model: {vocab_size: 300, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 4,
        num_key_value_heads: 2, max_position_embeddings: 64}
train: {steps: 6, batch_size: 4, device: cpu}
schedule: {warmup_steps: 2}
snapshot: {every: 3, early: false, probe_rows: 4}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("arms")
    scenes = "\n\n".join(f"Scene {i}. The king speaks to the queen and the fool. " * 8 for i in range(60))
    (root / "plays.txt").write_text(scenes)
    given = [f'source={{path: {root / "plays.txt"}, separator: "\\n\\n"}}', f"out={root / 'packed'}", "seq_len=32"]
    prepare(load(PrepareConfig, None, [*given, "tokenizer.vocab_size=300", "validation_fraction=0.2"]))
    return root


def trained(place: Path, name: str, seed: int, *overrides: str) -> Path:
    """A finished run of `name` that was measured, made once."""
    layout = RunLayout(place / "runs" / name)
    if not layout.manifest.is_file():
        (place / f"{name}.yaml").write_text(f"name: {name}\n{CONFIG}")
        seeds = [f"seed.{which}={seed}" for which in ("init", "data", "method")]
        own = [f"data.path={place / 'packed'}", f"runs_dir={place / 'runs'}"]
        train(place / f"{name}.yaml", [*own, *seeds, *overrides])
        tables.write(measure(open_run(layout.root), ["per"], ["*_proj"], kinds=["weights"]), layout.analysis("default"))
    return layout.root


def seeds(place: Path, arm: str, which: Sequence[int], *overrides: str) -> list[Path]:
    return [trained(place, f"{arm}-{seed}", seed, *overrides) for seed in which]


def compared(place: Path, **arms: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    (table, *_), notes = compare_runs([], arms, place / "out")
    return pd.read_parquet(table), notes


@pytest.mark.slow
def test_two_arms_of_one_configuration_are_said_to_be_that(place: Path) -> None:
    found, notes = compared(place, a=seeds(place, "plain", (0, 1, 2)), b=seeds(place, "plain", (3, 4, 5)))
    assert notes[0] == (
        '"b" and "a" have one configuration, as far as it is recorded: a difference between them is one of seeds.'
    )
    assert any(note.startswith("Equal parameters: ") for note in notes)
    assert any(note.startswith("Equal tokens read at step 6: ") for note in notes)
    assert '"b" less "a": 3 and 3 runs, not paired, since none have a partner of equal seeds.' in notes
    assert set(found["interval"]) == {"welch"}
    assert found["p_max_t"].isna().all(), "three runs an arm cannot support any mark"
    assert not [note for note in notes if "differs from" in note or "WARNING" in note or "by chance" in note]


@pytest.mark.slow
def test_arms_that_differ_in_the_learning_rate_are_paired_and_say_so(place: Path) -> None:
    slow = seeds(place, "slow", (0, 1, 2), "optimizer.lr=1e-5")
    found, notes = compared(place, a=seeds(place, "plain", (0, 1, 2)), b=slow)
    assert notes[0].startswith('"b" differs from "a" in optimizer.lr (1e-05 instead of ')
    assert notes[0].count("instead of") == 1, "nothing else differs"
    assert set(found["interval"]) == {"student_pairs"}
    found, notes = compared(place, mixed=[*seeds(place, "plain", (0, 1)), slow[2]], b=slow[:2])
    assert notes[0].startswith('WARNING: "mixed" mixes configurations: its runs differ in optimizer.lr (plain-0: ')
    assert set(found["status"]) == {"mixed"}


@pytest.mark.slow
def test_seeds_of_fine_tuning_on_one_run_count_as_one(place: Path) -> None:
    (source,) = seeds(place, "plain", (0,))
    tuned = seeds(place, "tuned", (1, 2), f"init_from={source}@6")
    found, notes = compared(place, a=seeds(place, "plain", (1, 2)), b=tuned)
    assert any("began from one pretrained model" in note and "count as one run" in note for note in notes)
    assert set(found["status"]) == {"one_run"}
    assert "init_from" in notes[0]
