"""`inspect` on a low-rank run."""

from __future__ import annotations

from pathlib import Path

import pytest
from pico_analyze.commands import holdings
from pico_contract.layout import RunLayout

from ...support.low_rank_run import Plan, write_low_rank_run


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """Full rank up to step 1, one restart of a large update at step 5, after which ranks are 2."""
    plan = Plan(observed=tuple(range(9)), restarts={5: 2}, warm=1, size=3e-2, checkpoints=(0, 8))
    return write_low_rank_run(tmp_path_factory.mktemp("relora") / "low", plan)


def test_inspect_names_what_is_low_rank_and_its_rank(layout: RunLayout) -> None:
    lines = holdings(layout.root)
    assert lines[-1] == "low-rank at 8 steps (rank at step 8): mlp.down_proj (2), self_attn.q_proj (2)"
    weights = next(line for line in lines if line.startswith("weights"))
    assert "self_attn.q_proj.lora_A" in weights
    for hidden in ("base", "lora_scale", "merged"):
        assert hidden not in weights


def test_inspect_of_other_runs_says_nothing_of_ranks(tmp_path: Path) -> None:
    layout = write_low_rank_run(tmp_path / "full", Plan(observed=(0, 1), warm=9, restarts={}, checkpoints=()))
    assert not any("low-rank" in line for line in holdings(layout.root))
