"""`train`: callable more than once in a process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pico_train import train
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig

from ...support.bad_methods import BadGradient, BadLoss  # noqa: F401  # by name, of this module

Tiny = Callable[..., RunConfig]


def test_a_finished_run_does_nothing(tiny: Tiny) -> None:
    config = tiny()
    train(config, quiet=True)
    files = {p: p.stat().st_mtime_ns for p in config.layout.root.rglob("*") if p.is_file()}
    outcome = train(config, quiet=True)
    assert outcome.status == "finished"
    assert "there is nothing to do" in outcome.message
    assert {p: p.stat().st_mtime_ns for p in config.layout.root.rglob("*") if p.is_file()} == files


def test_training_twice_in_one_process_with_two_precisions(tiny: Tiny) -> None:
    """accelerate refuses a second precision in one process; ours is its own. bfloat16 has 8 bits: losses stay close
    at first and are not equal."""
    losses = {}
    for precision in ("fp32", "bf16", "fp32"):
        config = tiny(**{"name": f"run-{precision}-{len(losses)}", "train.precision": precision})
        train(config, quiet=True)
        losses[config.name] = [row["loss"] for row in read_metrics(config.layout.metrics)]
    first, bf16, second = losses.values()
    assert first == second
    assert first != bf16
    assert bf16 == pytest.approx(first, abs=0.05)
