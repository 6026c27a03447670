"""A run built on shapes alone, whatever its method does."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from pico_train.run import RunConfig, build
from pico_train.run.disk_usage import Storage

Tiny = Callable[..., RunConfig]


@pytest.mark.parametrize(("method", "count"), [("Looking", 1), ("Restless", 8)])
def test_a_method_that_looks_at_values_or_never_rests_is_estimated(
    tiny: Tiny, method: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "users_disk", sys.modules[__name__])
    storage = Storage(build(tiny(**{"method.name": f"users_disk:{method}", "train.steps": 100_000})))
    assert len(storage.phases) == count
    assert storage.state == Storage(build(tiny(**{"method.name": "plain"}))).state
