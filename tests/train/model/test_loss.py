"""The fused loss is the plain one, in value and in gradient, for every dtype, and without forming all logits."""

import pytest
import torch
import torch.nn.functional as F
from pico_train.model import loss as module
from pico_train.model.loss import IGNORE, fused_loss_sum, plain_loss_sum, token_nll
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, the last one short."""
    monkeypatch.setattr(module, "chunk_tokens", lambda vocab_size, device: 7)


def problem(dtype=torch.float32, tokens=23, width=8, vocab=31, spread=1.0):
    draws = torch.Generator().manual_seed(0)
    hidden = (torch.randn(tokens, width, generator=draws, dtype=torch.float64) * spread).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=draws, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=draws)
    labels[::5] = IGNORE
    return hidden, weight, labels


def value_and_gradients(function, hidden, weight, labels, factor=1.0):
    value = function(hidden, weight, labels)
    return value.detach(), *torch.autograd.grad(value * factor, (hidden, weight))


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_plain_loss(dtype, factor):
    tolerance = 1e-6 if dtype == torch.float32 else 1e-7  # the plain oracle computes in float32
    args = problem(dtype)
    for ours, plain in zip(
        value_and_gradients(fused_loss_sum, *args, factor),
        value_and_gradients(plain_loss_sum, *args, factor),
        strict=True,
    ):
        scale = plain.abs().max().item()
        torch.testing.assert_close(ours.float(), plain.float(), rtol=0, atol=2 * tolerance * scale)


def test_gradcheck_in_float64():
    hidden, weight, labels = problem(torch.float64, tokens=9, width=3, vocab=5)
    assert torch.autograd.gradcheck(lambda h, w: fused_loss_sum(h, w, labels), (hidden, weight))


def test_the_plain_path_is_differentiable_twice():
    hidden, weight, labels = problem(torch.float64, tokens=5, width=3, vocab=4)
    (first,) = torch.autograd.grad(plain_loss_sum(hidden, weight, labels), hidden, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert torch.isfinite(second).all()
    assert second.abs().sum() > 0


def test_extreme_logits_stay_finite_and_exact():
    hidden, weight, labels = problem(spread=1e4)
    value, grad_hidden, grad_weight = value_and_gradients(fused_loss_sum, hidden, weight, labels)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, labels, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(value.double(), exact.detach(), rtol=1e-5, atol=0)
    assert torch.isfinite(grad_hidden).all()
    assert torch.isfinite(grad_weight).all()


def test_bfloat16_under_autocast_keeps_float32_weight_gradients():
    hidden, weight, labels = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, grad_hidden, grad_weight = value_and_gradients(fused_loss_sum, hidden, weight, labels)
    assert value.dtype == grad_weight.dtype == grad_hidden.dtype == torch.float32
    plain, _, plain_weight = value_and_gradients(plain_loss_sum, *problem())
    torch.testing.assert_close(value, plain, rtol=2e-2, atol=0)
    torch.testing.assert_close(grad_weight, plain_weight, rtol=0, atol=2e-2 * plain_weight.abs().max().item())


def test_only_the_gradients_that_are_asked_for_are_formed():
    hidden, weight, labels = problem()
    frozen = weight.detach()
    (alone,) = torch.autograd.grad(fused_loss_sum(hidden, frozen, labels), hidden)
    (both, _) = torch.autograd.grad(fused_loss_sum(hidden, weight, labels), (hidden, weight))
    assert torch.equal(alone, both)


def test_without_gradients_none_is_formed(monkeypatch):
    def refuse(*args):
        raise AssertionError("a gradient was formed")

    args = problem()
    with_gradients = fused_loss_sum(*args)
    monkeypatch.setattr(module, "_accumulate", refuse)
    with torch.no_grad():
        assert torch.equal(fused_loss_sum(*args), with_gradients)


def test_a_retained_graph_gives_the_same_gradient_again():
    hidden, weight, labels = problem()
    value = fused_loss_sum(hidden, weight, labels) * 0.25
    first = torch.autograd.grad(value, (hidden, weight), retain_graph=True)
    for before, after in zip(first, torch.autograd.grad(value, (hidden, weight)), strict=True):
        assert torch.equal(before, after)


def test_token_losses_sum_to_the_loss():
    hidden, weight, labels = problem()
    each = token_nll(hidden, weight, labels)
    assert each.shape == labels.shape
    assert not each[labels == IGNORE].any()
    torch.testing.assert_close(each.sum(), fused_loss_sum(hidden, weight, labels).detach(), rtol=1e-6, atol=0)


def test_no_block_is_larger_than_a_chunk(monkeypatch):
    monkeypatch.setattr(module, "chunk_tokens", lambda vocab_size, device: 4)
    assert max(s.stop - s.start for s in module._chunks(torch.empty(10, 2), torch.empty(5, 2))) == 4


class WithoutFloat64(TorchDispatchMode):
    """Refuses what Apple's GPUs refuse."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError(f"{function} in float64")
        return result


def test_a_device_without_float64_gives_the_same_within_float32(monkeypatch):
    expected = value_and_gradients(fused_loss_sum, *problem())
    args = problem()
    monkeypatch.setattr(module, "_WITHOUT_FLOAT64", ("cpu",))
    with WithoutFloat64():
        found = value_and_gradients(fused_loss_sum, *args)
        token_nll(*args)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=0)
