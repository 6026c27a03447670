"""200 revisions under a fixed disk budget, killed halfway and continued: the same table as from folders at hand."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from pico_analyze import measure, open_source
from pico_contract import codec

from ...support.fake_hub import REPO, serving

STEPS = 200
FILE = 12_560  # bytes of each, with its header
BUDGET = 100_000
ANALYSIS = """
import sys
from pathlib import Path
from pico_analyze import measure
from pico_analyze.sources.hub import open_hub

endpoint, root, table = sys.argv[1:]
series = open_hub("hub:{repo}@step*", {budget} / 2**30, Path(root) / "files", endpoint)
measure(series, ["per", "relative_distance"], cache=Path(root) / "results").to_parquet(table)
"""


def revision(step: int, folder: Path) -> dict[str, bytes]:
    """Three matrices of 4 KiB; seven revisions fit into the budget."""
    generator = torch.Generator().manual_seed(step)
    folder.mkdir(parents=True)
    held = {f"h.{layer}.dense.weight": torch.randn(32, 32, generator=generator) for layer in range(3)}
    codec.save_tensors(folder / "model.safetensors", held)
    content = (folder / "model.safetensors").read_bytes()
    assert len(content) == FILE
    return {"model.safetensors": content}


def largest(root: Path, process: subprocess.Popen[bytes], until: int, downloads: list[tuple[str, str]]) -> int:
    """The most that files took at one time, looked at until the process ends or `until` files were fetched.

    What two scans in a row both see was there in between.
    """
    most = 0
    while process.poll() is None and len(downloads) < until:
        seen = [set(root.rglob("*.safetensors")) for _ in range(2)]
        most = max(most, len(seen[0] & seen[1]) * FILE)
        time.sleep(0.01)
    return most


@pytest.mark.slow
def test_200_revisions_under_a_budget_killed_halfway(tmp_path: Path) -> None:
    revisions = {f"step{step}": revision(step, tmp_path / "pythia-tiny" / f"step{step}") for step in range(STEPS)}
    with serving(revisions) as replica:
        code = ANALYSIS.format(repo=REPO, budget=BUDGET)
        command = [sys.executable, "-c", code, replica.endpoint, str(tmp_path), str(tmp_path / "table.parquet")]
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        most = largest(tmp_path / "files", first, STEPS // 2, replica.downloads)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        before = len(replica.downloads)
        second = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        most = max(most, largest(tmp_path / "files", second, 10 * STEPS, replica.downloads))
        assert second.wait() == 0
        again = len(replica.downloads) - before
    assert 0 < most <= BUDGET
    assert STEPS // 2 <= before < STEPS
    assert again < STEPS - before + 30, "what was measured is not fetched again"
    expected = measure(open_source(tmp_path / "pythia-tiny"), ["per", "relative_distance"])
    found = pd.read_parquet(tmp_path / "table.parquet").astype(expected.dtypes)
    assert len(found) == STEPS * 3 * 2
    key = ["metric", "module", "step"]
    left, right = (table.sort_values(key).reset_index(drop=True) for table in (found, expected))
    pd.testing.assert_frame_equal(left, right, rtol=1e-12)
