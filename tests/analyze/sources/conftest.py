"""Series of model folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...support.model_folders import neox, write_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Steps 0, 5 and 10 of another family, and what may lie beside them."""
    root = tmp_path / "pythia"
    for step in (10, 0, 5):
        write_model(root / f"step{step}", neox(step))
    write_model(root / "final", neox(99))
    (root / "logs2").mkdir()
    (root / "notes1.txt").write_text("not a folder")
    return root
