"""Interruptions before, at and after merges and rebuilds; several processes; compiled layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pico_contract import codec, names
from pico_contract.layout import METHOD_TENSORS
from pico_train import train
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig, build
from pico_train.trainer.signals import StopRequest

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

Relora = Callable[..., RunConfig]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout and gains": {"dropout": 0.3, "trainable_scale": True},
    "warm start, adaptive": {"warm_start_steps": 2, "adaptive": {"energy": 0.7}},
    "base in bfloat16": {"base_dtype": "bfloat16"},
    "pruning": {"reset": "shared_pruning", "pruning_ratio": 0.5},
}

OTHERS = ("dropout and gains", "base in bfloat16", "pruning")


def truth(config: RunConfig) -> list[dict[str, Any]]:
    times = ("tokens_per_second", "mfu")
    return [{k: v for k, v in row.items() if k not in times} for row in read_metrics(config.layout.metrics)]


def files(config: RunConfig, step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of the checkpoint and of the snapshot."""
    parents = (config.layout.checkpoint(step), config.layout.snapshot(step))
    paths = [path for parent in parents for path in sorted(parent.rglob("*.safetensors"))]
    return {str(path.relative_to(config.layout.root)): codec.read_tensors(path) for path in paths}


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    return {}


@pytest.mark.parametrize("stop_at", [3, 4, 5, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 2, 7, 8, 9))])
@pytest.mark.parametrize(
    "kind", ["plain", "warm start, adaptive", *(pytest.param(k, marks=pytest.mark.slow) for k in OTHERS)]
)
def test_a_resume_is_bit_identical_wherever_it_was_cut(
    kind: str, stop_at: int, relora: Relora, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarts are at 4 and 8, the end of the warm start at 2. What is observed at a restart is equal as well."""
    changes = {"checkpoint.every": 0, "snapshot.every": 2, "evaluate.every": 0}
    if kind not in uninterrupted:
        whole = relora("whole", changes, **KINDS[kind])
        train(whole, quiet=True)
        uninterrupted[kind] = truth(whole), {step: files(whole, step) for step in (4, 8, 10)}
    parts = relora("parts", changes, **KINDS[kind])
    calls = iter(range(100))
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "asked", lambda self: "a signal" if next(calls) == stop_at else None)
        assert train(parts, quiet=True).step == stop_at
    assert train(parts, quiet=True).status == "finished"
    rows, tensors = uninterrupted[kind]
    assert truth(parts) == rows
    for step, expected in tensors.items():
        found = files(parts, step)
        for path, held in expected.items():
            if path not in found and "checkpoints" in path:
                continue
            if "weights.safetensors" in path and step == stop_at:
                held = {name: t for name, t in held.items() if name in found[path]}  # the rest is in its checkpoint
            assert found[path].keys() == held.keys(), path
            assert all(torch.equal(found[path][name], t) for name, t in held.items()), path


def test_adaptive_ranks_change_within_the_budget_and_keep_the_function(relora: Relora) -> None:
    options = {"restart_every": 3, "adaptive": {"energy": 0.8, "max_rank": 9}}
    config = relora("ranks", {"train.steps": 20, "checkpoint.every": 1, "snapshot.every": 0}, **options)
    train(config, quiet=True)
    history = last_ranks(config)
    assert len(history) > 2
    steps = [step for step, _ in history]
    assert steps == sorted(steps)
    assert all(step % 3 == 0 for step in steps)
    sides = {name: sum(shape) for name, shape in shapes(config).items()}
    budget = sum(rank * sides[name] for name, rank in history[0][1].items())
    for _, ranks in history:
        assert sum(rank * sides[name] for name, rank in ranks.items()) <= budget
        assert max(ranks.values()) <= 9
    assert len({rank for _, ranks in history for rank in ranks.values()}) > 2
    held = codec.read_tensors(config.layout.state(20) / METHOD_TENSORS)
    assert {name: len(held[names.lora_A(name)]) for name in history[-1][1]} == history[-1][1]
    rows = read_metrics(config.layout.metrics)
    assert rows[-1]["rank_max"] == max(history[-1][1].values())


def last_ranks(config: RunConfig) -> list[tuple[int, dict[str, int]]]:
    text = (config.layout.state(config.train.steps) / "scalars.json").read_text(encoding="utf-8")
    return json.loads(text)["method"]["ranks"]


def shapes(config: RunConfig) -> dict[str, torch.Size]:
    state = build(config).build_state(None)
    return {name: layer.base.weight.shape for name, layer in state.method.layers.items()}


def test_a_warm_start_trains_like_full_rank_until_its_end(relora: Relora, tiny: Callable[..., RunConfig]) -> None:
    changes = {"checkpoint.every": 1, "snapshot.every": 0, "evaluate.every": 0}
    warm = relora("warm", changes, warm_start_steps=5)
    train(warm, quiet=True)
    plain = tiny(name="plain", method={"name": "plain"})
    train(plain, quiet=True)
    ours, theirs = ([row["loss"] for row in read_metrics(c.layout.metrics)] for c in (warm, plain))
    assert ours[:6] == theirs[:6]  # the loss of update 6 is that of theta_5
    assert ours[7:] != theirs[7:]
    at = {step: codec.read_tensors(warm.layout.checkpoint(step) / "model.safetensors") for step in (5, 6)}
    moved = (at[6]["model.layers.0.mlp.up_proj.weight"] - at[5]["model.layers.0.mlp.up_proj.weight"]).double()
    assert torch.linalg.matrix_rank(moved, atol=1e-6).item() <= 4
