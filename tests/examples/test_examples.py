"""What a reader is shown runs as it is, on a tiny run that was trained for it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = (
    "model={vocab_size: 300, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 4,"
    " num_key_value_heads: 2, max_position_embeddings: 64}"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six updates."""
    from pico_train import train
    from pico_train.config import load
    from pico_train.data.prepare import PrepareConfig, prepare

    root = tmp_path_factory.mktemp("examples")
    (root / "plays.txt").write_text("\n\n".join(f"Scene {i}. The king speaks to the fool. " * 8 for i in range(60)))
    given = [f'source={{path: {root / "plays.txt"}, separator: "\\n\\n"}}', f"out={root / 'packed'}", "seq_len=32"]
    prepare(load(PrepareConfig, None, [*given, "tokenizer.vocab_size=300", "validation_fraction=0.2"]))
    (root / "run.yaml").write_text(f"name: tiny\nruns_dir: {root}\ndata: {{path: {root / 'packed'}}}\n")
    told = [MODEL, "train={steps: 6, batch_size: 4, device: cpu}", "snapshot={every: 3, probe_rows: 8}"]
    train(root / "run.yaml", [*told, "schedule.warmup_steps=2"], quiet=True)
    return root / "tiny"


def test_a_metric_of_ones_own_takes_fifteen_lines(trained: Path, tmp_path: Path) -> None:
    script = EXAMPLES / "add_a_metric.py"
    done = subprocess.run(
        [sys.executable, str(script), str(trained)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "outlier_share" in done.stdout
    assert (tmp_path / "outlier_share.png").stat().st_size > 1000
    code = [line for line in script.read_text().splitlines() if line.strip() and not line.lstrip().startswith('"""')]
    assert len(code) < 15


def test_a_method_of_ones_own_trains_and_logs_its_scalar(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a coefficient of 0 the losses are those of plain training; otherwise the loss holds the penalty."""
    from pico_contract.metrics_log import read_rows
    from pico_train import train

    monkeypatch.syspath_prepend(str(EXAMPLES))
    rows = {"plain": read_rows(trained / "metrics.jsonl")}
    told = [MODEL, "train={steps: 6, batch_size: 4, device: cpu}", "snapshot.every=0", "schedule.warmup_steps=2"]
    for name, coefficient in {"none": 0.0, "some": 0.01}.items():
        method = f'method={{name: "add_a_method:ZLoss", options: {{coefficient: {coefficient}}}}}'
        train(trained.parent / "run.yaml", [*told, f"name={name}", method], quiet=True)
        rows[name] = read_rows(trained.parent / name / "metrics.jsonl")
    losses = {name: [row["loss"] for row in each] for name, each in rows.items()}
    assert losses["none"] == pytest.approx(losses["plain"], rel=1e-5)
    first = rows["some"][0]
    assert first["z_loss"] == pytest.approx(first["loss"] - losses["plain"][0], rel=1e-3)
    assert first["z_loss"] > 0.01


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(trained: Path) -> None:
    made = _executor().executed(trained)
    figures = [o for cell in made.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(figures) == 6
    assert not [o for cell in made.cells for o in cell.get("outputs", []) if o.output_type == "error"]


def test_the_notebook_is_kept_with_what_it_shows_and_nothing_of_where_it_ran() -> None:
    text = _executor().PATH.read_text(encoding="utf-8")
    assert text.count('"image/png"') == 6
    assert not [word for word in ("/home/", "/root/", "/tmp/", 'execution_count": 1', "iopub") if word in text]


def _executor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute", EXAMPLES / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
