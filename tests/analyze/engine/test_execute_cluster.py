"""The same work items on a cluster of dask: two worker processes of this machine."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pico_analyze import measure
from pico_analyze.sources.run import Run


@pytest.mark.slow
def test_a_cluster_gives_the_same_table(run: Run, tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    expected = measure(run, ["per", "cka"])
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path))
    with cluster, Client(cluster) as client:
        frame = measure(run, ["per", "cka"], executor=client.get_executor(), cache=tmp_path / "cache")
    pd.testing.assert_frame_equal(frame, expected, rtol=1e-12)
    pd.testing.assert_frame_equal(measure(run, ["per", "cka"], cache=tmp_path / "cache"), frame, check_exact=True)
