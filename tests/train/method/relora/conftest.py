"""The tiny run with low-rank updates, merged every fourth update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pico_train.run import RunConfig

Tiny = Callable[..., RunConfig]


@pytest.fixture
def relora(tiny: Tiny) -> Callable[..., RunConfig]:
    """`relora(rank=3, **{"train.steps": 5})`: options of the method by name, anything else dotted."""

    def make(name: str = "tiny", changes: dict[str, Any] | None = None, **options: Any) -> RunConfig:
        method = {"name": "relora", "options": {"rank": 4, "restart_every": 4, **options}}
        return tiny(**{"name": name, "method": method, **(changes or {})})

    return make
