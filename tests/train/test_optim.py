"""The optimizer: AdamW by its definition, its state by name, and clipping in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pico_contract.errors import DamagedError, UserError
from pico_train.config import validate
from pico_train.optim import (
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    load_optimizer_tensors,
    optimizer_tensors,
)
from torch import nn

SHAPES = {"wide": (4, 6), "tall": (5, 2), "gain": (3,)}
Parameters = dict[str, nn.Parameter]


def parameters(shapes: dict[str, tuple[int, ...]] = SHAPES) -> Parameters:
    draw = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()}


def set_gradients(params: Parameters, step: int) -> None:
    for number, parameter in enumerate(params.values()):
        draw = torch.Generator().manual_seed(100 * step + number)
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def updated(params: Parameters, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def values(params: Parameters) -> dict[str, list[float]]:
    return {name: parameter.detach().flatten().tolist() for name, parameter in params.items()}


@pytest.mark.parametrize("changes", [{}, {"lr": 0.01, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.1}])
def test_adamw_by_its_definition(changes: dict[str, Any]) -> None:
    """Algorithm 2 of Loshchilov & Hutter (2019) in float64: decoupled decay on every parameter, moments unbiased."""
    config = validate(OptimizerConfig, changes, "test")
    params = parameters()
    expected = {name: p.detach().double().numpy().copy() for name, p in params.items()}
    m = {name: np.zeros_like(value) for name, value in expected.items()}
    v = {name: np.zeros_like(value) for name, value in expected.items()}
    optimizer = build_optimizer(config, params)
    (b1, b2), lr = config.betas, config.lr
    for step in range(1, 8):
        updated(params, optimizer, range(step, step + 1))
        for name, parameter in params.items():
            g = parameter.grad.double().numpy()
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g * g
            unbiased = m[name] / (1 - b1**step) / (np.sqrt(v[name] / (1 - b2**step)) + config.eps)
            expected[name] = expected[name] * (1 - lr * config.weight_decay) - lr * unbiased
    for name, parameter in params.items():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=2e-6, atol=1e-7)


def test_the_defaults_are_the_pico_recipe() -> None:
    config = OptimizerConfig()
    found = (config.lr, config.betas, config.eps, config.weight_decay, config.grad_clip)
    assert found == (3e-4, (0.9, 0.999), 1e-8, 0.01, 1.0)
    (group,) = build_optimizer(config, parameters()).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == found[:4]
    assert len(group["params"]) == len(SHAPES)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 0), ("betas", [1.0, 0.9]), ("betas", [0.9, -0.1]), ("eps", 0), ("weight_decay", -1), ("grad_clip", 0)],
)
def test_impossible_values_are_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"test.yaml: {key}"):
        validate(OptimizerConfig, {key: value}, "test.yaml")


def test_the_state_is_named_by_parameter() -> None:
    params = parameters()
    optimizer = build_optimizer(OptimizerConfig(), params)
    assert optimizer_tensors(optimizer, params) == {}
    updated(params, optimizer, range(1, 4))
    tensors = optimizer_tensors(optimizer, params)
    assert set(tensors) == {f"{name}.{entry}" for name in SHAPES for entry in ("exp_avg", "exp_avg_sq", "step")}
    assert {name: tuple(tensors[f"{name}.exp_avg"].shape) for name in SHAPES} == SHAPES
    assert tensors["wide.step"].item() == 3


def test_the_state_of_a_parameter_that_had_no_gradient_is_absent() -> None:
    params = parameters()
    optimizer = build_optimizer(OptimizerConfig(), params)
    set_gradients(params, 1)
    params["tall"].grad = None
    optimizer.step()
    assert not any(key.startswith("tall.") for key in optimizer_tensors(optimizer, params))


def test_a_restored_state_continues_bit_for_bit() -> None:
    """Into parameters in another order: state goes by name."""
    whole = parameters()
    optimizer = build_optimizer(OptimizerConfig(lr=0.1), whole)
    updated(whole, optimizer, range(1, 4))
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizer, whole).items()}
    resumed = {name: nn.Parameter(whole[name].detach().clone()) for name in reversed(SHAPES)}
    again = build_optimizer(OptimizerConfig(lr=0.1), resumed)
    load_optimizer_tensors(again, resumed, saved)
    for step in range(4, 8):
        set_gradients(whole, step)
        for name, parameter in resumed.items():
            parameter.grad = whole[name].grad.clone()
        optimizer.step()
        again.step()
    assert values(resumed) == values(dict(reversed(whole.items())))
    for key, tensor in optimizer_tensors(again, resumed).items():
        assert torch.equal(tensor, optimizer_tensors(optimizer, whole)[key]), key


def test_a_restored_state_is_a_copy() -> None:
    params = parameters()
    optimizer = build_optimizer(OptimizerConfig(), params)
    updated(params, optimizer, range(1, 2))
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizer, params).items()}
    before = saved["wide.exp_avg"].clone()
    other = parameters()
    again = build_optimizer(OptimizerConfig(), other)
    load_optimizer_tensors(again, other, saved)
    updated(other, again, range(2, 4))
    assert torch.equal(saved["wide.exp_avg"], before)


def state_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    params = parameters(shapes)
    optimizer = build_optimizer(OptimizerConfig(), params)
    updated(params, optimizer, range(1, 4))
    return optimizer_tensors(optimizer, params)


@pytest.mark.parametrize(
    ("saved", "key"),
    [({**SHAPES, "old": (2, 2)}, "old.step"), ({**SHAPES, "wide": (6, 4)}, "wide.exp_avg")],
)
def test_state_that_fits_no_parameter_is_refused_by_name(saved: dict[str, tuple[int, ...]], key: str) -> None:
    params = parameters()
    optimizer = build_optimizer(OptimizerConfig(), params)
    with pytest.raises(DamagedError, match=f'the saved optimizer state "{key}" fits no parameter of this model'):
        load_optimizer_tensors(optimizer, params, state_of(saved))
    assert optimizer_tensors(optimizer, params) == {}


def test_after_a_rebuild_parameters_of_another_shape_begin_anew() -> None:
    """None of their state is kept, their step counter neither: the next update is that of a first one."""
    params = parameters()
    before = params["wide"].detach().clone()
    config = OptimizerConfig(lr=0.1, weight_decay=0)
    optimizer = build_optimizer(config, params)
    saved = state_of({**SHAPES, "wide": (6, 4), "old": (2,)})
    load_optimizer_tensors(optimizer, params, saved, drop_unknown=True)
    tensors = optimizer_tensors(optimizer, params)
    assert {key.partition(".")[0] for key in tensors} == {"tall", "gain"}
    assert torch.equal(tensors["tall.exp_avg"], saved["tall.exp_avg"])
    updated(params, optimizer, range(4, 5))
    expected = before - 0.1 * params["wide"].grad.sign()  # the first update of Adam is the sign of the gradient
    assert torch.allclose(params["wide"], expected, atol=1e-5)
    steps = {name: optimizer_tensors(optimizer, params)[f"{name}.step"].item() for name in SHAPES}
    assert steps == {"wide": 1, "tall": 4, "gain": 4}


def test_the_gradient_norm_is_that_of_all_gradients_as_one_vector() -> None:
    params = parameters()
    set_gradients(params, 1)
    params["tall"].grad = None
    flat = np.concatenate([p.grad.double().numpy().ravel() for p in params.values() if p.grad is not None])
    assert gradient_norm(params).item() == pytest.approx(math.sqrt((flat**2).sum()), rel=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_gradients_above_the_bound_are_scaled_to_it(share: float) -> None:
    params = parameters()
    set_gradients(params, 1)
    before = {name: p.grad.clone() for name, p in params.items()}
    norm = gradient_norm(params)
    clip_gradients(params, share * norm.item(), norm)
    assert gradient_norm(params).item() == pytest.approx(share * norm.item(), rel=1e-5)
    for name, parameter in params.items():
        assert torch.allclose(parameter.grad, share * before[name], rtol=1e-5)


@pytest.mark.parametrize("bound", [None, 1e6])
def test_gradients_below_the_bound_or_without_one_stay_as_they_are(bound: float | None) -> None:
    params = parameters()
    set_gradients(params, 1)
    before = {name: p.grad.clone() for name, p in params.items()}
    clip_gradients(params, bound, gradient_norm(params))
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in params.items())
