"""A run built on shapes alone, whatever its method does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from pico_train.method.plain import Plain
from pico_train.model.decoder import Decoder
from pico_train.run import RunConfig, build
from pico_train.run.disk_usage import Storage
from torch import nn

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

Tiny = Callable[..., RunConfig]


class Looking(Plain):
    """Looks at values before it trains, which a model of shapes alone does not have."""

    def prepare(self, model: Decoder, data: Any, seed: int) -> dict[str, nn.Parameter]:
        self.largest = model.lm_head.weight.max().item()
        return super().prepare(model, data, seed)


class Restless(Plain):
    def rebuild_at(self, step: int) -> bool:
        return True


@pytest.mark.parametrize(("method", "count"), [("Looking", 1), ("Restless", 8)])
def test_a_method_that_looks_at_values_or_never_rests_is_estimated(
    tiny: Tiny, method: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "users_disk", sys.modules[__name__])
    storage = Storage(build(tiny(**{"method.name": f"users_disk:{method}", "train.steps": 100_000})))
    assert len(storage.phases) == count
    assert storage.state == Storage(build(tiny(**{"method.name": "plain"}))).state
