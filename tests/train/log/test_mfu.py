"""Model FLOPs utilisation: against a rate that is measured, without a trace in training."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from pico_train import train
from pico_train.log.metrics import read_metrics
from pico_train.log.mfu import matmul_rate, measures
from pico_train.model.cost import flops_per_token
from pico_train.run import RunConfig

Tiny = Callable[..., RunConfig]


def test_the_rate_is_that_of_products_and_draws_from_no_generator_of_torchs() -> None:
    """More than a million operations a second, less than any CPU's 1e15, and kept for the process."""
    before = torch.random.get_rng_state()
    rate = matmul_rate(torch.device("cpu"), "fp32", torch.get_num_threads())
    assert 1e6 < rate < 1e15
    assert torch.equal(torch.random.get_rng_state(), before)
    assert matmul_rate(torch.device("cpu"), "fp32", torch.get_num_threads()) == rate


@pytest.mark.parametrize(("wanted", "on"), [("auto", ("cuda", "mps")), ("on", ("cpu", "cuda", "mps")), ("off", ())])
def test_auto_leaves_cpus_out(wanted: str, on: tuple[str, ...]) -> None:
    assert tuple(kind for kind in ("cpu", "cuda", "mps") if measures(wanted, torch.device(kind))) == on


def test_utilisation_is_the_pace_over_the_rate(tiny: Tiny) -> None:
    """To the rounding of both numbers in the file; everything else in it is that of a run that measures nothing."""
    off = tiny(name="off")
    train(off, quiet=True)
    on = tiny(name="on", **{"log.mfu": "on"})
    train(on, quiet=True)
    (session,) = json.loads(on.layout.manifest.read_text())["sessions"]
    rate = session["matmul_rate"]
    rows = read_metrics(on.layout.metrics)
    for row in rows:
        expected = row["tokens_per_second"] * flops_per_token(on.model, 16) / rate
        assert row["mfu"] == pytest.approx(expected, rel=1e-3, abs=6e-5)
    times = {"tokens_per_second": 0, "mfu": 0}
    assert [row | times for row in rows] == [row | times for row in read_metrics(off.layout.metrics)]
    assert json.loads(off.layout.manifest.read_text())["sessions"][0]["matmul_rate"] is None
    assert not any("mfu" in row for row in read_metrics(off.layout.metrics))


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_session_says_in_what_precision_products_of_fp32_are(tiny: Tiny, precision: str) -> None:
    """ "high" lets CUDA use TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        config = tiny(**{"train.steps": 2, "snapshot.every": 0, "evaluate.every": 0})
        train(config, quiet=True)
    finally:
        torch.set_float32_matmul_precision(before)
    (session,) = json.loads(config.layout.manifest.read_text())["sessions"]
    assert (session["fp32_products"], session["precision"]) == (precision, "fp32")
