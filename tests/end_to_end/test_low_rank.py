"""A low-rank run as it was trained, measured, inspected and audited through the commands."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pico_analyze import measure, open_run

from .test_whole import MODEL, pico


@pytest.mark.slow
def test_from_restarts_to_ranks(tmp_path: Path) -> None:
    scenes = "\n\n".join(f"Scene {i}. The king speaks to the queen and the fool. " * 8 for i in range(60))
    (tmp_path / "plays.txt").write_text(scenes)
    prepared = ['source={path: plays.txt, separator: "\\n\\n"}', "out=packed", "seq_len=32"]
    pico(
        "pico_train", "data", "prepare", *prepared, "tokenizer.vocab_size=300", "validation_fraction=0.2", cwd=tmp_path
    )
    (tmp_path / "run.yaml").write_text("name: low\ndata: {path: packed}\nschedule: {warmup_steps: 2}\n")
    method = "method={name: relora, options: {rank: 2, restart_every: 3}}"
    train = "train={steps: 9, batch_size: 4, device: cpu}"
    overrides = [MODEL, method, train, "snapshot={every: 3, probe_rows: 4}", "optimizer.lr=0.01"]
    pico("pico_train", "run", "run.yaml", *overrides, cwd=tmp_path)

    assert "self_attn.q_proj (2)" in pico("pico_analyze", "inspect", "runs/low", cwd=tmp_path)
    pico("pico_analyze", "audit", "runs/low", cwd=tmp_path)
    pico("pico_analyze", "run", "runs/low", cwd=tmp_path)
    report = (tmp_path / "runs/low/analysis/default/report.html").read_text(encoding="utf-8")
    assert "lora_update" in report

    run = open_run(tmp_path / "runs/low")
    one = ranks(measure(run, ["numerical_rank"], ["q_proj.lora_update", "k_proj.lora_update"], kinds=["weights"]))
    assert one == {0: {0}, 1: {2}, 2: {2}, 3: {2}, 6: {2}, 9: {2}}
    names = ["q_proj.cumulative_lora_update", "q_proj"]
    whole = measure(run, ["numerical_rank"], names, steps=[3, 6, 9], kinds=["updates"], window=0)
    for name, some in whole.groupby("component", observed=True):
        assert ranks(some) == {3: {2}, 6: {4}, 9: {6}}, name


def ranks(table: pd.DataFrame) -> dict[int, set[int]]:
    return {int(step): set(some["value"].fillna(0).astype(int)) for step, some in table.groupby("step")}
