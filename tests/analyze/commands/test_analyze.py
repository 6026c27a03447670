"""`pico-analyze run` with windows and the cache."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from pico_analyze import commands
from pico_analyze.config import load
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout

OVERRIDES = [
    "metrics=[per, cka]",
    "components=[v_proj]",
    "kinds=[weights, activations, updates]",
    "reference=previous",
    "window=first",
]


@pytest.mark.slow
def test_windows_are_measured_drawn_and_not_computed_twice(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(layout.root, OVERRIDES)
    said: list[str] = []
    made = commands.run_analysis(config, "here", said.append)
    assert all(path.is_file() for path in made)
    assert {"updates_per_lines.png", "activations_val_cka_lines.png"} <= {path.name for path in made}
    analysis = layout.analysis(config.name)
    assert len(list(analysis.cache.iterdir())) == 2 * 3
    table = pd.read_parquet(analysis.table)
    pairs = table[table["metric"] == "cka"][["step", "reference_step"]].drop_duplicates()
    assert pairs.fillna(-1).to_numpy().tolist() == [[0, -1], [1, 0], [2, 1]]
    assert set(table.loc[table["kind"] == "updates", "reference_step"]) == {0}

    monkeypatch.delattr(torch.linalg, "svdvals")
    monkeypatch.delattr(torch.linalg, "eigvalsh")
    assert commands.run_analysis(config, "here", said.append) == made
    pd.testing.assert_frame_equal(pd.read_parquet(analysis.table), table)
    assert said == [line for line in said if line.startswith("measured")]


@pytest.mark.slow
def test_files_of_the_cache_belong_to_the_analysis(layout: RunLayout) -> None:
    for name in ("one", "two"):
        commands.run_analysis(load(layout.root, [*OVERRIDES, f"name={name}"]), "here", print)
    files = [{path.name for path in Path(layout.analysis(name).cache).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    assert "updates model.layers.0.self_attn.v_proj.jsonl" in files[0]


def test_layers_and_steps_cannot_both_be_compared(layout: RunLayout) -> None:
    config = load(layout.root, ["metrics=[cka]", "across=layers", "reference=first"])
    with pytest.raises(UserError, match="leave out reference and reference_run"):
        commands.run_analysis(config, "here", print)
