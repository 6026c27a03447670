"""Pretraining by low-rank updates, on a tiny run: restarts, what trains, what is stored."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pico_contract import codec, names
from pico_contract.errors import UserError
from pico_contract.layout import METHOD_TENSORS, OPTIMIZER
from pico_train import train
from pico_train.run import RunConfig, build
from pico_train.run.estimate import estimate
from pico_train.trainer.update import compute_gradients

from ....support.relora_runs import begun, loss, saved, updates, weights

Relora = Callable[..., RunConfig]
FAST = {"snapshot.every": 0, "evaluate.every": 0}


@pytest.mark.parametrize("options", [{}, {"trainable_scale": True}, {"alpha": 3.0}])
def test_loss_and_weights_are_equal_before_and_after_a_restart(relora: Relora, options: dict[str, Any]) -> None:
    """science.md, row 1. The merged weights are those that the factors computed, to the last bit."""
    job, state = begun(relora(**options, changes=FAST))
    list(updates(job, state, 3))
    state.method.config = state.method.config.model_copy(update={"restart_every": 0})
    list(updates(job, state, 1))
    before, at = weights(state), loss(job, state)
    rows = job.loader.tokens(job.loader.order.rows(5))[:, :-1]
    logits = state.model(rows)
    state.method.config = state.method.config.model_copy(update={"restart_every": 4})
    state.method.after_step(state.model, state.optimizer, 4)
    assert weights(state).keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(state).items())
    assert loss(job, state) == at
    torch.testing.assert_close(state.model(rows), logits, rtol=0, atol=1e-5)


def test_the_training_model_is_the_plain_decoder_of_its_effective_weights(relora: Relora) -> None:
    job, state = begun(relora(changes=FAST))
    list(updates(job, state, 6))
    rows = job.loader.tokens(job.loader.order.rows(1))[:, :-1]
    torch.testing.assert_close(state.model(rows), state.plain_decoder()(rows), rtol=1e-5, atol=1e-5)


def test_a_restart_changes_no_parameter_object(relora: Relora) -> None:
    job, state = begun(relora(changes=FAST))
    objects = {name: (id(p), p.data_ptr()) for name, p in state.parameters.items()}
    list(updates(job, state, 9))
    assert {name: (id(p), p.data_ptr()) for name, p in state.parameters.items()} == objects
    assert not any(state.method.rebuild_at(step) for step in range(20))


def test_restarts_draw_other_factors_from_the_methods_seed_alone(relora: Relora) -> None:
    def drawn(**changes: Any) -> list[torch.Tensor]:
        job, state = begun(relora(changes={**FAST, **changes}))
        name = "model.layers.1.mlp.down_proj.lora_A.weight"
        at_first = state.parameters[name].detach().clone()
        return [
            at_first,
            *(state.parameters[name].detach().clone() for step in updates(job, state, 8) if step % 4 == 0),
        ]

    ours, again = drawn(), drawn(**{"seed.init": 5, "seed.data": 6})
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in pairwise(ours))
    assert not torch.equal(ours[0], drawn(**{"seed.method": 1})[0])


def test_the_rank_of_the_cumulative_update_is_that_of_all_restarts(relora: Relora) -> None:
    """k r after k restarts, up to the smaller side: exactly from the factors in float64, and on disk with the tolerance
    of a difference of stored weights (science.md, section 2)."""
    config = relora(rank=3, changes={**FAST, "snapshot.every": 4, "checkpoint.every": 4, "train.steps": 12})
    train(config, quiet=True)
    module, layout = "model.layers.0.mlp.up_proj", config.layout
    first, merged = saved(config, 0), []
    for restarts, step in enumerate((4, 8, 12), 1):
        extra = codec.read_tensors(layout.snapshot(step) / "weights.safetensors")
        merged.append((extra[names.merged_B(module)], extra[names.merged_A(module)]))
        B = torch.cat([b for b, _ in merged], dim=1).double()
        A = torch.cat([a for _, a in merged]).double()
        assert np.linalg.matrix_rank((B @ A).numpy()) == 3 * restarts
        weight, start = saved(config, step)[f"{module}.weight"], first[f"{module}.weight"]
        values = np.linalg.svd((weight.double() - start.double()).numpy(), compute_uv=False)
        scale = max(np.linalg.svd(w.double().numpy(), compute_uv=False)[0] for w in (weight, start))
        tol = max(weight.shape) * torch.finfo(torch.float32).eps * scale
        assert (values > tol).sum() == 3 * restarts
        torch.testing.assert_close(weight.double() - start.double(), B @ A, rtol=0, atol=1e-6)


def test_the_rank_stops_at_the_smaller_side(relora: Relora) -> None:
    job, state = begun(relora(rank=4, restart_every=1, changes={**FAST, "train.steps": 10}))
    start = weights(state)["model.layers.0.self_attn.k_proj.weight"]  # (16, 32)
    for step in updates(job, state, 6):
        moved = weights(state)["model.layers.0.self_attn.k_proj.weight"].double() - start.double()
        assert torch.linalg.matrix_rank(moved, atol=1e-6).item() == min(4 * step, 16)


def test_what_a_snapshot_holds(relora: Relora) -> None:
    """Base, factors and scale of every observed module at every step, what was merged at restarts alone; gradients of
    the factors by training, of effective weights by the probe."""
    config = relora(changes={"snapshot.modules": ["q_proj", "mlp.up_proj"], "snapshot.early": True})
    train(config, quiet=True)
    modules = [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")]
    running = {part(m) for m in modules for part in (names.base, names.lora_A, names.lora_B, names.lora_scale)}
    merged = {part(m) for m in modules for part in (names.merged_A, names.merged_B)}
    for step, more in {0: set(), 2: {f"{m}.weight" for m in modules}, 4: merged, 8: merged, 10: set()}.items():
        held = codec.read_tensors(config.layout.snapshot(step) / "weights.safetensors")
        assert set(held) == running | more, step
        if step in (0, 4, 8):
            assert not held[names.lora_B(modules[0])].any()
        effective = held.get(f"{modules[0]}.weight")
        effective = saved(config, step)[f"{modules[0]}.weight"] if effective is None else effective
        W, A, B, s = (held[p(modules[0])] for p in (names.base, names.lora_A, names.lora_B, names.lora_scale))
        torch.testing.assert_close(effective, W + s * B @ A, rtol=0, atol=1e-6)
    train_gradients = codec.read_tensors(config.layout.snapshot(2) / "train.gradients.safetensors")
    assert set(train_gradients) == {part(m) for m in modules for part in (names.lora_A, names.lora_B)}
    val_gradients = codec.read_tensors(config.layout.snapshot(2) / "val.gradients.safetensors")
    assert set(val_gradients) == {f"{m}.weight" for m in modules}


def test_the_optimizer_holds_factors_and_no_base(relora: Relora) -> None:
    config = relora(changes=FAST)
    train(config, quiet=True)
    held = codec.read_tensors(config.layout.state(10) / OPTIMIZER)
    assert not [name for name in held if "base" in name or "_proj.weight" in name]
    rank, shape = 4, (48, 32)
    assert held["model.layers.0.mlp.up_proj.lora_A.weight.exp_avg"].shape == (rank, shape[1])
    assert held["model.layers.0.mlp.up_proj.lora_B.weight.exp_avg"].shape == (shape[0], rank)
    assert held["model.layers.0.mlp.up_proj.lora_A.weight.step"] == 2  # since the restart after update 8
    assert held["lm_head.weight.step"] == 10


def test_full_and_frozen_modules(relora: Relora) -> None:
    """Hybrid rank: what is frozen stays bit for bit, what is full has moments of its own shape."""
    config = relora(full=["mlp.down_proj"], frozen=["embed_tokens", "layers.0.self_attn.q_proj"], changes=FAST)
    train(config, quiet=True)
    before, after = saved(config, 0), saved(config, 10)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"}
    held = codec.read_tensors(config.layout.state(10) / METHOD_TENSORS)
    assert {names.low_rank_part(name)[0] for name in held} == {
        f"model.layers.{i}.{m}"
        for i in (0, 1)
        for m in [*(f"self_attn.{x}_proj" for x in "qkvo"), "mlp.gate_proj", "mlp.up_proj"]
        if (i, m) != (0, "self_attn.q_proj")
    }
    moments = codec.read_tensors(config.layout.state(10) / OPTIMIZER)
    assert moments["model.layers.1.mlp.down_proj.weight.exp_avg"].shape == (32, 48)


def test_a_rank_may_be_a_fraction_of_the_width(relora: Relora) -> None:
    _, state = begun(relora(rank=0.75, changes=FAST))  # 24 of 32; key and value projections have 16 outputs
    ranks = state.method.state_dict()[1]["ranks"][0][1]
    assert {ranks[f"model.layers.0.{m}"] for m in ("self_attn.q_proj", "mlp.up_proj")} == {24}
    assert ranks["model.layers.0.self_attn.k_proj"] == 16


def test_dropout_is_of_the_method_and_of_training_alone(relora: Relora) -> None:
    """The manifest says it, the probe has none, and masks differ between micro-batches and updates."""
    config = relora(dropout=0.5, changes={"train.micro_batch_size": 4})
    job, state = begun(config)
    list(updates(job, state, 2))
    part = job.loader.tokens(job.loader.order.rows(3))[:4]
    with torch.no_grad():
        seen = []
        for step in (3, 4):
            state.method.begin_step(step)
            seen += [float(state.method.loss(state.model, part, step)[0]) for _ in range(2)]
        state.method.begin_step(3)
        again = float(state.method.loss(state.model, part, 3)[0])
    assert len(set(seen)) == 4
    assert again == seen[0]
    train(config, quiet=True)
    manifest = (config.layout.snapshot(2) / "manifest.json").read_text(encoding="utf-8")
    assert '"dropout": true' in manifest


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": 17}, r"method.options.rank is 17, more than model.layers.0.self_attn.k_proj allows, .* side is 16"),
        ({"rank": 0}, r"method.options.rank"),
        ({"rank": 1.5}, r"method.options.rank"),
        ({"modules": ["mlp.gates"]}, r'"mlp.gates" matches no module; the nearest names are: .*mlp.gate_proj'),
        ({"modules": ["lm_head"]}, r'"lm_head" matches no module'),
        ({"full": ["embed_tokens"]}, r'"embed_tokens" matches no module'),
        ({"frozen": ["nothing"]}, r'"nothing" matches no module'),
        ({"frozen": ["*"]}, r"method.options.frozen leaves nothing to train"),
        ({"warm_start_steps": 10}, r"warm_start_steps \(10\) leaves none of train.steps \(10\)"),
        ({"adaptive": {"min_rank": 5, "max_rank": 4}}, r"max_rank \(4\) is below min_rank \(5\)"),
        ({"reset": "prune"}, r"method.options.reset"),
    ],
)
def test_options_that_cannot_be(relora: Relora, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(relora(**options, changes=FAST), quiet=True)


def test_check_names_the_file_and_says_nothing_before(relora: Relora) -> None:
    with pytest.raises(UserError, match=r"^low.yaml: method.options.rank is 17, more than"):
        next(estimate(relora(rank=17), "low.yaml"))


def test_a_schedule_that_restarts_elsewhere_is_refused(relora: Relora) -> None:
    schedule = {"restart_every": 3, "restart_warmup_steps": 1}
    with pytest.raises(UserError, match=r"schedule.restart_every is 3, but method.options.restart_every is 4"):
        build(relora(changes={"schedule": schedule}))
    train(relora(changes={**FAST, "schedule": {**schedule, "restart_every": 4}}), quiet=True)


def test_the_host_need_wait_for_the_device_at_restarts_alone(relora: Relora) -> None:
    _, state = begun(relora(changes=FAST))
    assert [step for step in range(1, 11) if state.method.acts_after(step)] == [4, 8]


def test_activations_computed_again_drop_the_same_inputs(relora: Relora) -> None:
    """Up to the order in which inputs' gradients are summed."""
    gradients = []
    for again in (False, True):
        job, state = begun(relora(dropout=0.5, changes={**FAST, "train.activation_checkpointing": again}))
        list(updates(job, state, 2))
        compute_gradients(job, state, 3)
        gradients.append({name: p.grad for name, p in state.parameters.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
