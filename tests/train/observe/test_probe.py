"""The probe: its rows and the positions at which it is looked at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pico_train.observe.probe import PositionsConfig, positions
from pico_train.run import RunConfig, build

Tiny = Callable[..., RunConfig]


def test_the_probe_does_not_depend_on_seeds(tiny: Tiny) -> None:
    first = build(tiny()).observer.probe
    second = build(tiny(**{"seed.data": 5, "seed.init": 6, "seed.method": 7})).observer.probe
    assert torch.equal(first.tokens, second.tokens)
    assert first.tokens.shape == (6, 17)


def test_positions_by_rule() -> None:
    sampled = positions(PositionsConfig(rule="sampled", k=4), 16, "fingerprint")
    assert sampled == sorted(set(sampled))
    assert len(sampled) == 4
    assert sampled == positions(PositionsConfig(rule="sampled", k=4), 16, "fingerprint")
    assert positions(PositionsConfig(rule="every", k=4), 16, "") == [3, 7, 11, 15]
