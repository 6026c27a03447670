"""A checkpoint that a command names: intact, or refused in a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import RunLayout
from pico_train.commands import evaluate_run, generate_text


def generated(run: RunLayout, prompt: str = "the king", **changes: object) -> str:
    settings = {"step": None, "tokens": 12, "temperature": 1.0, "top_k": None, "top_p": None, "seed": 0, **changes}
    return generate_text(run.root, prompt, **settings)


def test_a_run_without_checkpoints_and_a_directory_that_is_none(finished: RunLayout, tmp_path: Path) -> None:
    finished.checkpoints.rename(tmp_path / "away")
    with pytest.raises(UserError, match="has no checkpoint; it has: none"):
        generated(finished)
    with pytest.raises(UserError, match=r"is not a run directory \(it has no run.json\)"):
        generated(RunLayout(tmp_path))


@pytest.mark.parametrize("damage", ["flipped", "cut", "unsealed"])
def test_a_damaged_checkpoint_is_named_and_not_replaced_by_another(finished: RunLayout, damage: str) -> None:
    directory = finished.checkpoint(10)
    file = directory / ("manifest.json" if damage == "unsealed" else "model.safetensors")
    if damage == "flipped":
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    elif damage == "cut":
        os.truncate(file, file.stat().st_size - 4)
    else:
        file.unlink()
    for act in (generated, lambda run: evaluate_run(run.root, None, None)):
        with pytest.raises(DamagedError, match=rf"{file.name}.*; other intact steps: 0, 4, 8$"):
            act(finished)
    assert evaluate_run(finished.root, 8, None).startswith("step 8: perplexity: loss ")
