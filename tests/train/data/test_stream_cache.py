"""Where streamed rows are kept on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pico_contract.layout import DataLayout
from pico_train.data.packed import PackedData
from pico_train.data.shards import StreamConfig

from ...support import replica
from ...support.data_hub import REPO, StandIn
from .test_shards import Fetched, streamed


def test_where_the_cache_lies_may_be_said(fetched: Fetched, hub: StandIn, tmp_path: Path) -> None:
    path = fetched(REPO).path
    data = PackedData.open(path, StreamConfig(cache=tmp_path / "local", cache_gib=1e-3))
    streamed(data).take(np.array([0]))
    assert (tmp_path / "local" / REPO.replace("/", "--") / hub.commit / replica.name(0)).is_file()
    assert not DataLayout(path).cache.exists()
