"""Which source a path or glob is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pico_analyze import open_source
from pico_contract.errors import UserError

from ...support.model_folders import NEOX, neox


@pytest.mark.parametrize("how", ["directory", "glob", "list", "strings"])
def test_a_series_opens_from_a_directory_a_glob_or_a_list(models: Path, how: str) -> None:
    folders = [models / f"step{step}" for step in (5, 10, 0)]
    given: Any = {
        "directory": models,
        "glob": str(models / "step*"),
        "list": folders,
        "strings": [str(folder) for folder in folders],
    }[how]
    series = open_source(given)
    assert (series.name, list(series.steps), series.damaged) == ("pythia", [0, 5, 10], {})
    assert series.splits(5, "weights") == [None]
    assert series.splits(5, "gradients") == []
    assert sorted(series.modules(5, "weights")) == ["embed_out", NEOX.format(0), NEOX.format(1)]
    assert torch.equal(series.tensor(5, "weights", NEOX.format(1)), neox(5)[f"{NEOX.format(1)}.weight"])
    assert series.tokens(5) is None


def test_what_is_no_source_is_refused_with_the_reason(models: Path) -> None:
    with pytest.raises(UserError, match="at least one folder"):
        open_source([])
    with pytest.raises(UserError, match="is neither a run"):
        open_source(models / "logs2")
    with pytest.raises(UserError, match=r'no folder that fits ".*epoch'):
        open_source(models / "epoch*")
    with pytest.raises(UserError, match="does not exist"):
        open_source(models / "nothing")
