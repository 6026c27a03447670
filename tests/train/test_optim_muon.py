"""Muon for the projections and AdamW for the rest, as one optimizer; and what weight decay leaves out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pico_contract.errors import UserError
from pico_train import train
from pico_train.checkpoint.load import load_checkpoint
from pico_train.config import validate
from pico_train.log.metrics import read_metrics
from pico_train.method.plain import Plain
from pico_train.optim import OptimizerConfig, build_optimizer, optimizer_tensors, set_learning_rates
from pico_train.run import RunConfig, build
from pico_train.run.estimate import estimate
from torch import nn

Tiny = Callable[..., RunConfig]
SHAPES = {
    "model.embed_tokens.weight": (12, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.mlp.gate_proj.weight": (16, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.low_rank": (2, 8),
    "head.weight": (3, 8),
}
PROJECTIONS = list(SHAPES)[1:3]


class Classified(Plain):
    """A square matrix of the method's own trains beside the model."""

    start = torch.eye(4)

    def prepare(self, model: Any, data: Any, seed: int) -> dict[str, nn.Parameter]:
        self.own = nn.Parameter(self.start.clone())
        return {**super().prepare(model, data, seed), "method.own": self.own}

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        total, terms, scalars = super().loss(model, batch, step)
        return total + self.own.square().sum(), terms, scalars

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {"own": self.own.detach()}, {}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> None:
        self.start = tensors["own"]


def parameters() -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in SHAPES.items()}


def set_gradients(params: dict[str, nn.Parameter], step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for parameter in params.values():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def orthogonalised(matrix: np.ndarray, iterations: int) -> np.ndarray:
    """The quintic of Jordan et al. (2024) acts on singular values alone: s -> 3.4445 s - 4.7750 s^3 + 2.0315 s^5."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize(
    ("changes", "rate", "scale"),
    [
        ({}, 0.1, lambda a, b: 0.2 * max(a, b) ** 0.5),
        (
            {"lr": 0.02, "scaling": "original", "nesterov": False, "momentum": 0.8},
            0.02,
            lambda a, b: max(1, a / b) ** 0.5,
        ),
    ],
)
def test_muon_by_its_definition(changes: dict[str, Any], rate: float, scale: Callable[[int, int], float]) -> None:
    """In float64, with the momentum of the post (a sum where torch has a mean: the norm takes the factor out).

    3 % of the step in norm: torch iterates in bfloat16 (8 bits, five iterations whose slope at 0 is 3.4445 each).
    """
    config = validate(OptimizerConfig, {"name": "muon", "lr": 0.1, "weight_decay": 0.3, "muon": changes}, "test")
    params = parameters()
    optimizer = build_optimizer(config, params)
    momentum = {name: np.zeros(SHAPES[name]) for name in PROJECTIONS}
    for step in range(1, 5):
        set_gradients(params, step)
        before = {name: params[name].detach().double().numpy().copy() for name in PROJECTIONS}
        set_learning_rates(optimizer, 0.5)
        optimizer.step()
        for name in PROJECTIONS:
            gradient, mu = params[name].grad.double().numpy(), config.muon.momentum
            momentum[name] = mu * momentum[name] + gradient
            ahead = gradient + mu * momentum[name] if config.muon.nesterov else momentum[name]
            expected = -0.5 * rate * scale(*SHAPES[name]) * orthogonalised(ahead, config.muon.ns_steps)
            found = params[name].detach().double().numpy() - before[name] * (1 - 0.5 * rate * 0.3)
            assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected), (name, step)


def test_what_is_no_projection_of_a_layer_is_adamw_s() -> None:
    """Embeddings, norms, heads, and matrices that a method put beside or inside a projection: to the bit."""
    config = validate(OptimizerConfig, {"name": "muon", "lr": 0.1, "muon": {"lr": 0.7}}, "test")
    both, plain = parameters(), parameters()
    rest = {name: plain[name] for name in SHAPES if name not in PROJECTIONS}
    joint, alone = build_optimizer(config, both), build_optimizer(OptimizerConfig(lr=0.1), rest)
    for step in range(1, 4):
        set_gradients(both, step)
        set_gradients(plain, step)
        joint.step()
        alone.step()
    assert all(torch.equal(both[name], rest[name]) for name in rest)
    entries = {key.rpartition(".")[::2] for key in optimizer_tensors(joint, both)}
    of_adamw = {(name, entry) for name in rest for entry in ("exp_avg", "exp_avg_sq", "step")}
    assert entries == of_adamw | {(name, "momentum_buffer") for name in PROJECTIONS}
    joint.zero_grad(set_to_none=True)
    assert all(parameter.grad is None for parameter in both.values())


def test_one_factor_moves_both_rates() -> None:
    config = validate(OptimizerConfig, {"name": "muon", "lr": 0.1, "muon": {"lr": 0.7}}, "test")
    optimizer = build_optimizer(config, parameters())
    for factor in (1.0, 0.25, 0.5):
        set_learning_rates(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.7 * factor, 0.1 * factor]


@pytest.mark.parametrize("tied", [True, False])
def test_it_learns_and_continues_bit_for_bit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    monkeypatch.setitem(sys.modules, "users_pieces", sys.modules[__name__])
    shared = {"optimizer.name": "muon", "model.tie_word_embeddings": tied, "evaluate.every": 0, "snapshot.every": 0}
    shared["method.name"] = "plain" if tied else "users_pieces:Classified"
    whole, cut = tiny(name="whole", **shared), tiny(name="cut", **shared)
    train(whole, quiet=True)
    losses = [row["loss"] for row in read_metrics(whole.layout.metrics)]
    assert losses[-1] < losses[0] - 0.5
    train(cut, quiet=True)
    for step in (8, 10):
        shutil.rmtree(cut.layout.checkpoint(step))
    train(cut, quiet=True)
    (a, b) = (load_checkpoint(config.layout, 10) for config in (whole, cut))
    assert a.optimizer.keys() == b.optimizer.keys()
    assert all(torch.equal(a.optimizer[key], b.optimizer[key]) for key in a.optimizer)
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)


def test_its_state_is_smaller_and_told_before_the_run(tiny: Tiny) -> None:
    def memory(config: RunConfig) -> str:
        (line,) = (line for line in estimate(config, "test.yaml") if line.startswith("memory"))
        return line.split(" for ")[0]

    assert memory(tiny()) != memory(tiny(**{"optimizer.name": "muon"}))


def test_settings_of_muon_without_muon_are_refused() -> None:
    with pytest.raises(UserError, match='the section "muon" is set, but name is "adamw"'):
        validate(OptimizerConfig, {"muon": {"momentum": 0.9}}, "test.yaml")
    assert OptimizerConfig().supports_sharding
    assert not OptimizerConfig(name="muon").supports_sharding


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_does_not_decay_is_named_by_patterns(name: str) -> None:
    """Without gradients there is no other step than decay; an AdamW of zero gradients moves nothing else."""
    patterns = ["*norm*", "embed_tokens", "gate_proj"]
    config = validate(OptimizerConfig, {"name": name, "lr": 0.1, "weight_decay": 0.5, "no_decay": patterns}, "test")
    params = parameters()
    before = {key: parameter.detach().clone() for key, parameter in params.items()}
    optimizer = build_optimizer(config, params)
    for parameter in params.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [key for key, parameter in params.items() if torch.equal(parameter, before[key])]
    assert kept == [list(SHAPES)[i] for i in (0, 2, 3)]
    for key in params.keys() - set(kept):
        assert torch.allclose(params[key], before[key] * 0.95), key


def test_a_pattern_that_fits_nothing_is_refused_before_the_run(tiny: Tiny) -> None:
    config = tiny(**{"optimizer.no_decay": ["*norm*", "embed_token"]})
    with pytest.raises(UserError, match=r'the pattern "embed_token" matches no module; .*: .*embed_tokens'):
        train(config, quiet=True)
    assert not config.layout.manifest.exists()


def test_what_does_not_decay_is_what_a_run_is(tiny: Tiny) -> None:
    train(tiny(**{"train.steps": 2}), quiet=True)
    assert build(tiny()).build_state(None).optimizer.param_groups[0]["weight_decay"] == 0.01
    with pytest.raises(UserError, match=r"is another run: optimizer\.no_decay"):
        train(tiny(**{"optimizer.no_decay": ["*norm*"]}), quiet=True)
