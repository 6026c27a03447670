"""Stops in good order: by a signal, and by a limit of time."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest
from pico_contract.errors import UserError
from pico_train import train
from pico_train.run import RunConfig

from ...support.signalling_methods import Interrupt, Killer, Toleration  # noqa: F401  # by name, of this module

Tiny = Callable[..., RunConfig]


@pytest.fixture
def users_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file, importable under the name that the configurations use."""
    import sys

    monkeypatch.setitem(sys.modules, "users_methods", sys.modules[__name__])


@pytest.mark.parametrize("method", ["Killer", "Toleration", "Interrupt"])
def test_a_signal_finishes_the_update_saves_and_stops(tiny: Tiny, users_methods: None, method: str) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    config = tiny(**{"method.name": f"users_methods:{method}"})
    outcome = train(config, quiet=True)
    assert (outcome.status, outcome.step) == ("stopped", 5)
    assert json.loads(config.layout.manifest.read_text())["status"] == "stopped"
    assert (config.layout.checkpoint(5) / "manifest.json").is_file()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == handlers
    assert train(config, quiet=True).status == "finished"


def test_a_wall_clock_limit_stops_with_a_margin(tiny: Tiny) -> None:
    changes = {"train.steps": 1_000_000, "train.hours": 1.0, "train.margin_minutes": 60 - 1 / 60, "snapshot.every": 0}
    config = tiny(**changes, **{"checkpoint.every": 0, "evaluate.every": 0})
    outcome = train(config, quiet=True)
    assert outcome.status == "stopped"
    assert "the wall-clock limit is near" in outcome.message
    assert 0 < outcome.step < 1_000_000
    assert (config.layout.checkpoint(outcome.step) / "manifest.json").is_file()


def test_a_margin_longer_than_the_limit_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"train.hours \(0.05\) leaves no time to train"):
        tiny(**{"train.hours": 0.05})
