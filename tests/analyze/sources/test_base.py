"""A source of a user's own: an object with a few attributes is all that `measure` asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze import measure


class Doubling:
    """Two layers whose weights double from step to step, made up when they are asked for."""

    name, model, steps = "doubling", {"num_attention_heads": 2}, [0, 1, 2]
    damaged: dict[int, list[str]] = {}  # noqa: RUF012

    def tokens(self, step: int) -> int:
        return 1000 * step

    def splits(self, step: int, kind: str) -> list[Any]:
        return [None] if kind == "weights" else []

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        return [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "vo"]

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        return 2.0**step * torch.eye(4)


def test_a_source_of_ones_own_is_measured(tmp_path: Path) -> None:
    """Modules and circuits alike; without fingerprints its results are not kept, whatever the cache."""
    table = measure(Doubling(), ["spectral_norm", "relative_distance"], cache=tmp_path / "cache")
    assert set(table["run"]) == {"doubling"}
    assert set(zip(table["step"], table["tokens"], strict=True)) == {(0, 0), (1, 1000), (2, 2000)}
    norms = table[table["metric"] == "spectral_norm"].set_index(["component", "step"])["value"]
    for component, of_step in {"self_attn.v_proj": [1, 2, 4], "ov_circuit": [1, 4, 16]}.items():
        for step, value in enumerate(of_step):
            assert norms.loc[component, step].tolist() == pytest.approx([value] * len(norms.loc[component, step]))
    distance = table[(table["metric"] == "relative_distance") & (table["component"] == "self_attn.o_proj")]
    assert distance.groupby("step")["value"].first().tolist() == pytest.approx([0.75, 0.5, 0.0])
    assert not (tmp_path / "cache").exists()
