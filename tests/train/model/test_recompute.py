"""Activations formed again instead of kept: the same gradients to the last bit, from less memory."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pico_train.model.decoder import Decoder, DecoderConfig, RMSNorm, SwiGLU
from pico_train.model.execution import apply_compile_and_checkpointing
from pico_train.model.recompute import recompute_in_backward
from torch import nn

from ...support.autograd_memory import kept_bytes

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
IDS = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(1))


def decoder(recomputed: bool) -> Decoder:
    model = Decoder(CONFIG)
    model.init_weights(lambda name: torch.Generator().manual_seed(len(name)))
    if recomputed:
        apply_compile_and_checkpointing(model, compiled=False, checkpointing=False)
    return model


def gradients(model: Decoder, *, bf16: bool = False) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(IDS[:, :-1], IDS[:, 1:])
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_the_same_to_the_last_bit(bf16: bool) -> None:
    written, recomputed = gradients(decoder(False), bf16=bf16), gradients(decoder(True), bf16=bf16)
    assert written.keys() == recomputed.keys() == dict(decoder(True).named_parameters()).keys()
    for name, gradient in written.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_two_of_a_layers_norms_and_half_of_its_mlp_are_not_kept() -> None:
    tokens, width, inner = 2 * 16, CONFIG.hidden_size, CONFIG.intermediate_size

    def kept(model: Decoder) -> int:
        return kept_bytes(model, lambda: model.hidden_states(IDS[:, :-1]).sum())

    assert kept(decoder(False)) - kept(decoder(True)) == 2 * tokens * 4 * (2 * width + 2 * inner)


def test_no_module_runs_twice() -> None:
    """Norms and SwiGLU apart, which are kept if they have hooks."""
    model, calls = decoder(True), []
    for name, module in model.named_modules():
        if not isinstance(module, RMSNorm | SwiGLU | nn.SiLU):
            module.register_forward_pre_hook(partial(lambda name, *_: calls.append(name), name))
    gradients(model)
    assert len(calls) == len(set(calls)) == 23


def test_a_norm_with_a_hook_is_kept_as_the_hook_leaves_it() -> None:
    found = []
    for recomputed in (False, True):
        model = decoder(recomputed)
        for layer in model.model.layers:
            layer.input_layernorm.register_forward_hook(lambda module, inputs, output: output * 2)
            layer.post_attention_layernorm.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_a_graph_without_a_backward_pass_is_freed() -> None:
    """Of operations that keep their own output, as attention does: kept with its graph it would keep itself alive."""

    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    x, double = torch.randn(3, requires_grad=True), Double()
    alive = weakref.ref(double)
    with recompute_in_backward([double]):
        doubled = double(x)
        result = doubled.exp() * doubled
    del double, doubled
    assert alive() is not None
    del result
    assert alive() is None


def test_a_decoders_graph_without_a_backward_pass_is_freed() -> None:
    """By reference counts alone: a cycle through autograd's nodes would never be collected."""
    model, seen = decoder(True), []

    def note(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        seen.append(weakref.ref(output))

    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(note)
    hidden = model.hidden_states(IDS[:, :-1])
    assert all(gate() is not None for gate in seen)
    del hidden
    assert all(gate() is None for gate in seen)


def test_first_and_second_gradients_are_those_of_finite_differences() -> None:
    """In float64; through all of it, gate and up included."""
    torch.manual_seed(0)
    x, gate, up, down = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4), (6, 4), (6, 4), (4, 6)))
    norm, act = RMSNorm(4, 1e-6).double(), SwiGLU()

    def recomputed(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        with recompute_in_backward([norm, act, act.silu]):
            normed = norm(x)
            return F.linear(act(F.linear(normed, gate), F.linear(normed, up)), down)

    inputs = [tensor.requires_grad_() for tensor in (x, gate, up, down)]
    assert torch.autograd.gradcheck(recomputed, inputs)
    assert torch.autograd.gradgradcheck(recomputed, inputs)


def test_second_derivatives_are_those_of_what_is_written() -> None:
    def second(model: Decoder) -> tuple[torch.Tensor, ...]:
        parameters = list(model.parameters())
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            loss = model(IDS[:, :-1], IDS[:, 1:], double_backward=True)
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            return torch.autograd.grad(sum((g * g).sum() for g in first), parameters)

    for recomputed, written in zip(second(decoder(True)), second(decoder(False)), strict=True):
        assert torch.equal(recomputed, written)


def test_transforms_of_torch_func_go_through_it() -> None:
    """Gradients of each row, as a method of one's own may want them."""
    model = decoder(True)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        given = (row[None, :-1], row[None, 1:])
        return torch.func.functional_call(model, parameters, given, {"double_backward": True})

    def recomputed(parameters: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        hidden = torch.func.functional_call(model.model, strip(parameters), (row[None, :-1],))
        return torch.nn.functional.cross_entropy((hidden @ parameters["lm_head.weight"].T)[0], row[1:], reduction="sum")

    def strip(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n.removeprefix("model."): p for n, p in parameters.items() if n.startswith("model.")}

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.func.grad(loss)(parameters, IDS[0])
        for name, gradient in torch.func.grad(recomputed)(parameters, IDS[0]).items():
            torch.testing.assert_close(gradient, expected[name])
        rows = torch.func.vmap(torch.func.grad(recomputed), (None, 0))(parameters, IDS)
    for name, gradient in rows.items():
        torch.testing.assert_close(gradient[0], expected[name], rtol=1e-4, atol=1e-5)


def test_swiglu_is_its_definition() -> None:
    gate, up = torch.tensor([0.0, 1.0, -30.0], dtype=torch.float64), torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(SwiGLU()(gate, up), gate / (1 + torch.exp(-gate)) * up, rtol=1e-14, atol=0.0)


def test_a_view_of_another_shape_is_formed_and_a_part_is_kept() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    linear = nn.Linear(4, 5)
    formed: list[int] = []

    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            formed.append(x.numel())
            return x * 2

    double = Double()
    with recompute_in_backward([double]):
        doubled = double(x)
        formed.clear()
        whole, part = linear(doubled.view(6, 4)).view(2, 3, 5) + linear(doubled), linear(doubled[:1])
    once = (x * 2).detach()
    for passes in (1, 2):  # the graph may be gone through again
        linear.weight.grad = None
        (whole.sum() + part.sum()).backward(retain_graph=True)
        weight = linear.weight.grad
        assert weight is not None
        torch.testing.assert_close(weight, (2 * once.sum((0, 1)) + once[0].sum(0)).expand(5, 4))
        assert formed == [24] * passes, "two uses, formed once a pass"
