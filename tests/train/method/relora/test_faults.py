"""Three faults of earlier code (science.md, section 3), each a test of what is right, and a switch that repeats it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pico_contract import names
from pico_train.run import RunConfig
from pico_train.trainer.update import apply_update, compute_gradients

from ....support.relora_runs import begun, loss, updates, weights

Relora = Callable[..., RunConfig]
FAST = {"snapshot.every": 0, "evaluate.every": 0}


def test_b_has_a_gradient_at_once_and_a_after_the_first_update(relora: Relora) -> None:
    """science.md, row 2."""
    job, state = begun(relora(changes=FAST))
    norms = []
    for step in (1, 2):
        update = compute_gradients(job, state, step)
        norms.append({name: float(p.grad.norm()) for name, p in state.parameters.items() if p.grad is not None})
        apply_update(state, update, 1.0)
    factors = {name[-13:-7]: [at[name] for at in norms] for name in state.parameters if "layers.0.mlp.up" in name}
    assert factors["lora_A"][0] == 0 < min(factors["lora_B"][0], factors["lora_A"][1])
    assert all(norms[1][name] > 0 for name in state.parameters)


def test_with_both_factors_zero_nothing_reaches_them_before_the_first_restart(relora: Relora) -> None:
    """The fault of row 2, as a switch."""
    job, state = begun(relora(init="zeros", changes=FAST))
    start = weights(state)
    for step in updates(job, state, 5):
        same = [torch.equal(t, start[name]) for name, t in weights(state).items() if "_proj" in name]
        assert all(same) if step <= 4 else not any(same)


def test_the_first_update_after_a_restart_is_as_large_as_the_learning_rate(relora: Relora) -> None:
    """science.md, row 3: Adam's first step is lr g / |g|; weight decay is off, so that nothing else moves."""
    assert first_update(relora(changes={**FAST, "optimizer.weight_decay": 0.0})) == pytest.approx(1.0, abs=1e-3)


def first_update(config: RunConfig) -> float:
    """The largest move of a factor in the first update after a restart, in learning rates; its gradient is made large,
    since that of A is 0 then."""
    job, state = begun(config)
    list(updates(job, state, 8))
    factors = {name: p for name, p in state.parameters.items() if "lora_" in name}
    before = {name: p.detach().clone() for name, p in factors.items()}
    update = compute_gradients(job, state, 9)
    for p in factors.values():
        p.grad.normal_(generator=torch.Generator().manual_seed(0))
    apply_update(state, update, 1.0)
    moved = max(float((p.detach() - before[name]).abs().max()) for name, p in factors.items())
    return moved / config.optimizer.lr


def test_the_loss_jumps_where_merges_leave_the_scale_out(relora: Relora) -> None:
    """The fault of row 1, as a switch: half of an update is lost where alpha / r is 2."""
    jumps = {}
    for how in ("alpha_over_rank", "none"):
        job, state = begun(relora(merge_scale=how, alpha=8.0, restart_every=10, changes=FAST))
        list(updates(job, state, 9))
        before, updated = loss(job, state), weights(state)
        state.method.after_step(state.model, state.optimizer, 10)
        jumps[how] = loss(job, state) - before
        moved = sum(float((t - updated[name]).norm()) for name, t in weights(state).items())
        assert (moved > 0.1) == (how == "none")
    assert jumps["alpha_over_rank"] == 0.0
    assert jumps["none"] > 0.01


def test_without_the_scale_what_was_merged_is_stored_as_it_was(relora: Relora) -> None:
    job, state = begun(relora(merge_scale="none", changes=FAST))
    name, layer = next(iter(state.method.layers.items()))
    before = layer.base.weight.detach().clone()
    list(updates(job, state, 4))
    merged = state.method.extra_tensors(state.model)
    product = merged[names.merged_B(name)] @ merged[names.merged_A(name)]
    torch.testing.assert_close(layer.base.weight.detach() - before, product, rtol=0, atol=1e-6)
