"""Three seeds, each of one thing: an arm that varies one of them differs in nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from pico_train.method.plain import Plain
from pico_train.model.decoder import Decoder
from pico_train.run import RunConfig, build
from pico_train.seeds import derive, generator
from torch import nn

Tiny = Callable[..., RunConfig]


class Seeded(Plain):
    def prepare(self, model: Decoder, data: Any, seed: int) -> dict[str, nn.Parameter]:
        self.seed = seed
        return super().prepare(model, data, seed)


@pytest.mark.parametrize("seed", ["init", "data", "method"])
def test_a_seed_varies_its_own_thing_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, seed: str) -> None:
    monkeypatch.setitem(sys.modules, "users_seeded", sys.modules[__name__])

    def drawn(**changes: int) -> dict[str, Any]:
        given = {"method.name": "users_seeded:Seeded", "snapshot.positions": {"rule": "sampled", "k": 4}}
        job = build(tiny(**given, **{f"seed.{name}": value for name, value in changes.items()}))
        state = job.build_state(None)
        return {
            "init": [p.tolist() for p in state.model.parameters()],
            "data": job.loader.order.rows(1).tolist(),
            "method": state.method.seed,
            "none": (job.observer.probe.row_ids.tolist(), job.observer.positions),
        }

    before, after = drawn(**{seed: 0}), drawn(**{seed: 1})
    assert {name for name in before if before[name] != after[name]} == {seed}


def test_a_draw_is_a_function_of_seed_and_purpose() -> None:
    assert derive(0, "a", 1) == derive(0, "a", 1)
    assert len({derive(0, "a", 1), derive(1, "a", 1), derive(0, "b", 1), derive(0, "a", 2), derive(0, "a1")}) == 5
    assert generator(0, "a").initial_seed() == derive(0, "a")
    assert 0 <= derive(0, "a") < 2**63
