"""The audit of a series that other programs wrote: copies and damage are named by what the files hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pico_analyze.audit.series import audit_series
from pico_analyze.commands import audit_run
from pico_analyze.sources.open import open_source
from safetensors.torch import save_file


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Four steps, of which the third holds the bytes of the second."""
    for step, scale in ((1, 1.0), (2, 2.0), (3, 2.0), (4, 4.0)):
        folder = tmp_path / "m" / f"step{step}"
        folder.mkdir(parents=True)
        save_file({"model.layers.0.self_attn.q_proj.weight": scale * torch.eye(4)}, folder / "model.safetensors")
    return tmp_path / "m"


def test_steps_that_hold_the_same_bytes_are_named(series: Path) -> None:
    lines = audit_series(open_source(series))
    assert lines == ["duplicate: step 3: its files are bit-identical to those of step 2"]


def test_a_step_that_cannot_be_read_is_named(series: Path) -> None:
    file = series / "step4" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    lines = audit_series(open_source(series))
    assert len(lines) == 2
    assert lines[0].startswith("damage: step 4: ")
    assert "model.safetensors" in lines[0]


def test_the_command_counts_what_it_found_and_what_it_compared(series: Path) -> None:
    lines, sound = audit_run(series, hashes=True, say=lambda line: None)
    assert not sound
    assert lines[-1].startswith("1 finding in 4 steps")
