"""Low-rank runs in several processes, sharded, compiled, and with activations computed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pico_contract import codec
from pico_train import train
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig, build
from pico_train.trainer.update import apply_update, compute_gradients

from ....support.launching import launcher

pytestmark = pytest.mark.slow  # each start of a process imports torch anew, and the compiler takes its time

Relora = Callable[..., RunConfig]


@pytest.mark.parametrize("how", ["replicated", "sharded", "adaptive"])
def test_two_processes_train_what_one_does(how: str, relora: Relora, tmp_path: Path) -> None:
    """Across restarts at 4 and 8, up to the order of sums in float32; factors are drawn alike."""
    changes = {"evaluate.every": 0, "checkpoint.every": 4, "snapshot.every": 4}
    options = {"adaptive": {"energy": 0.7}} if how == "adaptive" else {}
    one, two = (relora(name, changes, **options) for name in ("one", "two"))
    train(one, quiet=True)
    overrides = ["train.sharding=full"] if how == "sharded" else []
    done = launcher(tmp_path)(two, 2, *overrides)
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_metrics(config.layout.metrics) for config in (one, two))
    assert [row["order_hash"] for row in ours] == [row["order_hash"] for row in theirs]
    assert [row["loss"] for row in theirs] == pytest.approx([row["loss"] for row in ours], rel=2e-4)
    for step in (4, 8, 10):
        pairs = [config.layout.checkpoint(step) for config in (one, two)]
        pairs = list(zip(*(sorted(p.rglob("*.safetensors")) for p in pairs), strict=True))
        snapshots = [sorted(config.layout.snapshot(step).rglob("*.safetensors")) for config in (one, two)]
        for a, b in [*pairs, *zip(*snapshots, strict=True)]:
            left, right = codec.read_tensors(a), codec.read_tensors(b)
            assert left.keys() == right.keys(), a
            for name, tensor in left.items():
                assert tensor.shape == right[name].shape, name
                # Adam's first update after a reset is the learning rate, 0.01, in the direction of a gradient whose
                # sign rounding may decide where it is next to nothing; factors drawn otherwise differ by 0.1.
                if "activations" not in a.name and "gradients" not in a.name and "exp_avg" not in name:
                    torch.testing.assert_close(right[name], tensor, rtol=0, atol=5e-3)
    state = [json.loads((c.layout.state(10) / "scalars.json").read_text())["method"] for c in (one, two)]
    assert state[0] == state[1]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning", "ignore:dynamo_pgo:UserWarning"
)
def test_compiled_and_recomputed_layers_train_alike(relora: Relora) -> None:
    """Same graph for all layers; restarts write in place, so that nothing is compiled anew."""
    losses = {}
    for name, changes in {
        "eager": {},
        "compiled": {"train.compile": "on"},
        "recomputed": {"train.activation_checkpointing": True},
    }.items():
        config = relora(name, {"snapshot.every": 0, "evaluate.every": 0, **changes})
        job = build(config)
        state = job.build_state(None)
        losses[name] = []
        for step in range(1, 7):
            update = compute_gradients(job, state, step)
            losses[name].append(update.loss)
            apply_update(state, update, 1.0)
    assert losses["recomputed"] == pytest.approx(
        losses["eager"], rel=1e-6
    )  # inputs' gradients are summed in another order
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-4)
