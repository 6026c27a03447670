"""Compiled layers and recomputed activations: other ways to the same numbers under the same names."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from pico_contract import codec
from pico_train import train
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig, build
from pico_train.trainer.update import compute_gradients

from ...support.autograd_memory import kept_bytes

Tiny = Callable[..., RunConfig]
of_the_compiler = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning", "ignore:dynamo_pgo:UserWarning"
)
"""What torch says to itself while it compiles."""


def gradients(config: RunConfig) -> tuple[float, dict[str, torch.Tensor]]:
    job = build(config)
    state = job.build_state(None)
    update = compute_gradients(job, state, 1)
    return update.loss, {name: p.grad for name, p in state.parameters.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_activations_give_the_same_gradients_to_the_last_bit(tiny: Tiny, precision: str) -> None:
    loss, kept = gradients(tiny(**{"train.precision": precision}))
    again, recomputed = gradients(tiny(**{"train.activation_checkpointing": True}))
    assert again == loss
    assert recomputed.keys() == kept.keys()
    for name, gradient in kept.items():
        assert torch.equal(recomputed[name], gradient), name


def test_recomputing_keeps_less(tiny: Tiny) -> None:
    """Bytes that autograd holds between forward and backward, parameters not counted: a layer keeps its input."""

    def held(config: RunConfig) -> int:
        job = build(config)
        model = job.build_state(None).model
        tokens = job.loader.tokens(job.loader.order.rows(1))
        return kept_bytes(model, lambda: model.hidden_states(tokens[:, :-1]).sum())

    changes = {"model.num_hidden_layers": 6}
    whole = held(tiny(**changes))
    assert held(tiny(**changes, **{"train.activation_checkpointing": True})) < whole / 4


@pytest.mark.slow
@of_the_compiler
def test_a_compiled_run_is_observed_without_a_trace_and_resumes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Observed, unobserved and interrupted: the same bits; close to eager; the same names in its files."""
    torch.compiler.reset()
    eager = tiny(name="eager")
    train(eager, quiet=True)
    observed = tiny(name="observed", **{"train.compile": "on"})
    train(observed, quiet=True)
    unobserved = tiny(name="unobserved", **{"snapshot.every": 0})
    train(unobserved, quiet=True)

    def weights(config: RunConfig) -> dict[str, torch.Tensor]:
        return codec.read_tensors(config.layout.checkpoint(10) / "model.safetensors")

    names = weights(eager).keys()
    assert weights(observed).keys() == names
    assert not [name for name in names if "_orig_mod" in name]
    assert all(torch.equal(weights(observed)[name], weights(unobserved)[name]) for name in names)
    for step in codec.listed_steps(observed.layout.checkpoints):
        if step > 4:
            observed.layout.checkpoint(step).rename(observed.layout.root / f"gone_{step}")
    before = read_metrics(observed.layout.metrics)
    kept = weights(unobserved)
    train(tiny(name="observed", **{"snapshot.every": 4}), quiet=True)
    assert all(torch.equal(weights(observed)[name], kept[name]) for name in names)
    losses = [row["loss"] for row in before]
    assert [row["loss"] for row in read_metrics(observed.layout.metrics)] == losses
    # Ten updates at a learning rate of 0.01: fused kernels round otherwise, and the difference grows.
    assert losses == pytest.approx([row["loss"] for row in read_metrics(eager.layout.metrics)], rel=1e-4)
    record = json.loads(observed.layout.manifest.read_text())
    assert [session["compile"] for session in record["sessions"]] == [True, True]
