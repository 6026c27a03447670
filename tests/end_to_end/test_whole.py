"""From text to figures through the commands alone, as a user types them; and the demo as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = (
    "model={vocab_size: 300, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 4,"
    " num_key_value_heads: 2, max_position_embeddings: 64}"
)


def command(*words: str, cwd: Path, code: int = 0) -> str:
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=500)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def pico(tool: str, *words: str, cwd: Path, code: int = 0) -> str:
    return command("-m", tool, *words, cwd=cwd, code=code)


@pytest.mark.slow
def test_from_text_to_figures(tmp_path: Path) -> None:
    scenes = "\n\n".join(f"Scene {i}. The king speaks to the queen and the fool. " * 8 for i in range(60))
    (tmp_path / "plays.txt").write_text(scenes)
    prepared = ['source={path: plays.txt, separator: "\\n\\n"}', "out=packed", "seq_len=32"]
    options = ["tokenizer.vocab_size=300", "validation_fraction=0.2"]
    assert "rows of 33" in pico("pico_train", "data", "prepare", *prepared, *options, cwd=tmp_path)

    (tmp_path / "run.yaml").write_text("name: first\ndata: {path: packed}\nschedule: {warmup_steps: 2}\n")
    overrides = [MODEL, "train={steps: 6, batch_size: 4, device: cpu}", "snapshot={every: 3, probe_rows: 4}"]
    assert "snapshots" in pico("pico_train", "check", "run.yaml", *overrides, cwd=tmp_path)
    assert "finished at step 6" in pico("pico_train", "run", "run.yaml", *overrides, cwd=tmp_path)
    assert "nothing to do" in pico("pico_train", "run", "run.yaml", *overrides, cwd=tmp_path)
    assert "finished" in pico("pico_train", "list", cwd=tmp_path)
    assert "Scene" in pico("pico_train", "data", "show", "runs/first", "--step", "2", cwd=tmp_path)
    assert "perplexity" in pico("pico_train", "evaluate", "runs/first", "--step", "0", cwd=tmp_path)
    assert pico("pico_train", "generate", "runs/first", "--prompt", "Scene", "--tokens", "5", cwd=tmp_path)

    made = pico("pico_analyze", "run", "runs/first", cwd=tmp_path).split()
    assert all((tmp_path / path).is_file() for path in made)
    table = pd.read_parquet(tmp_path / "runs/first/analysis/default/table.parquet")
    assert sorted(table["step"].unique()) == [0, 1, 2, 3, 6]
    assert set(table["kind"]) == {"weights", "gradients", "activations"}
    per = table[(table["metric"] == "per") & (table["kind"] == "weights") & table["head"].isna()]
    assert per["value"].between(0.5, 1).all()


@pytest.mark.slow
def test_the_demo_runs_as_it_is(tmp_path: Path) -> None:
    """With fewer steps: everything else as `make demo` does it, the corpus fetched by pip."""
    told = command(str(ROOT / "examples/demo/demo.py"), "train.steps=40", "log.console_every=10", cwd=tmp_path)
    for expected in ("smoothed bigram model", "entropy of single tokens", "this decoder", "5. a sample", "made:"):
        assert expected in told
    figures = list((tmp_path / "runs/demo/analysis/default/figures").glob("*.png"))
    assert len(figures) >= 3
    again = command(str(ROOT / "examples/demo/demo.py"), "train.steps=40", cwd=tmp_path)
    assert "nothing to do" in again


@pytest.mark.slow
@pytest.mark.skipif("PICO_TEST_DATA" not in os.environ, reason="PICO_TEST_DATA names no directory of real test data")
def test_real_text_teaches_something(tmp_path: Path) -> None:
    """Fifteen updates on real prose bring the held-out loss well below that of a uniform guess, ln 300 = 5.70."""
    text = next(Path(os.environ["PICO_TEST_DATA"]).glob("tinyshakespeare/*.txt"))
    prepared = [f'source={{path: {text}, separator: "\\n\\n"}}', "out=packed", "seq_len=32", "max_tokens=60000"]
    pico("pico_train", "data", "prepare", *prepared, "tokenizer.vocab_size=300", cwd=tmp_path)
    (tmp_path / "run.yaml").write_text(
        "name: real\ndata: {path: packed}\noptimizer: {lr: 0.01}\nsnapshot: {every: 0}\n"
    )
    overrides = [MODEL, "train={steps: 15, batch_size: 16, device: cpu}", "schedule.name=constant"]
    told = pico("pico_train", "run", "run.yaml", *overrides, cwd=tmp_path)
    loss = float(told.partition("perplexity: loss ")[2].partition(",")[0])
    assert loss < 5.2
