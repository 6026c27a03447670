"""The low-rank layer: its forward pass, its merge, and peft's LoRA layer as an independent oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_train.method.relora.lora import LowRankLinear
from pico_train.seeds import generator


def layer(
    outputs: int = 24, inputs: int = 16, rank: int = 4, alpha: float = 10.0, seed: int = 0, **options: object
) -> LowRankLinear:
    """With factors and, where there is one, a gain that are not at their beginning."""
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=draws) / inputs**0.5
    settings = {"dropout": 0.0, "gain": False, "base_dtype": torch.float32, **options}
    made = LowRankLinear(weight, rank, alpha, **settings)
    with torch.no_grad():
        made.draw_A(generator(seed, "A"))
        made.lora_B.weight.normal_(generator=draws)
        if made.lora_gain is not None:
            made.lora_gain.fill_(0.7)
    return made


@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 12), st.floats(0.1, 64), st.booleans(), st.integers(0, 99)
)
@settings(deadline=None, max_examples=30)
def test_a_merge_leaves_the_function_as_it_was(
    outputs: int, inputs: int, rank: int, alpha: float, gain: bool, seed: int
) -> None:
    """science.md, row 1: alpha is not the rank. float32 sums of up to 32 terms: 1e-5 of the largest output."""
    one = layer(outputs, inputs, rank, alpha, seed, gain=gain)
    x = torch.randn(5, inputs, generator=torch.Generator().manual_seed(seed))
    before, effective = one(x), one.effective()
    assert not torch.equal(before, torch.nn.functional.linear(x, one.base.weight))
    one.merge()
    assert torch.equal(one.lora_B.weight, torch.zeros(outputs, rank))
    torch.testing.assert_close(one(x), before, rtol=0, atol=1e-5 * before.abs().max().item())
    assert torch.equal(one.effective(), effective)


def test_a_merge_without_its_scale_moves_the_function() -> None:
    one = layer(alpha=16.0, rank=4)
    x, update = torch.randn(5, 16), one.lora_B.weight @ one.lora_A.weight
    before = one(x)
    one.merge(scaled=False)
    torch.testing.assert_close(before - one(x), 3 * x @ update.T, rtol=1e-4, atol=1e-4)


def test_effective_is_the_definition_in_float64() -> None:
    one = layer(alpha=10.0, rank=4, gain=True)
    W, A, B = (p.detach().double() for p in (one.base.weight, one.lora_A.weight, one.lora_B.weight))
    torch.testing.assert_close(one.effective().double(), W + 10.0 / 4 * 0.7 * B @ A, rtol=1e-5, atol=1e-6)
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(one(x.float()).double(), x @ (W + 1.75 * B @ A).T, rtol=1e-5, atol=1e-5)


def test_the_base_is_frozen_and_the_rest_trains() -> None:
    one = layer(gain=True)
    one(torch.randn(3, 16)).square().sum().backward()
    with_gradient = {name for name, p in one.named_parameters() if p.grad is not None}
    assert with_gradient == {"lora_A.weight", "lora_B.weight", "lora_gain"}
    assert not one.base.weight.requires_grad


def test_a_base_in_bfloat16_is_rounded_once_a_merge() -> None:
    one = layer(base_dtype=torch.bfloat16)
    x, effective = torch.randn(3, 16), one.effective()
    torch.testing.assert_close(one(x), x @ effective.T, rtol=1e-5, atol=1e-5)
    one.merge()
    assert torch.equal(one.base.weight, effective.to(torch.bfloat16))


def test_a_is_drawn_between_the_bounds_of_kaiming_without_touching_the_generator() -> None:
    state = torch.get_rng_state()
    one = layer(outputs=64, inputs=100, rank=32)
    assert torch.equal(torch.get_rng_state(), state)
    A = one.lora_A.weight.detach()
    assert A.abs().max() <= 0.1
    assert A.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("rank", [1, 4])
def test_peft_computes_the_same_and_merges_to_the_same(rank: int) -> None:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    one = layer(rank=rank, alpha=10.0)
    plain = torch.nn.Linear(16, 24, bias=False)
    plain.weight = torch.nn.Parameter(one.base.weight.detach().clone())
    theirs = Linear(plain, "default", LoraConfig(r=rank, lora_alpha=10.0), r=rank, lora_alpha=10.0)
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(one.lora_A.weight)
        theirs.lora_B["default"].weight.copy_(one.lora_B.weight)
    x = torch.randn(7, 16)
    torch.testing.assert_close(one(x), theirs(x), rtol=1e-5, atol=1e-5)
    theirs.merge()
    one.merge()
    torch.testing.assert_close(one.base.weight, theirs.get_base_layer().weight, rtol=1e-6, atol=1e-6)
