"""A changed decoder is found out and never passed off as a Llama: by its tensors, or by what it computes with them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import MODEL_CONFIG, MODEL_WEIGHTS
from pico_train import train
from pico_train.commands import evaluate_run, generate_text, open_checkpoint
from pico_train.hub.export import export_checkpoint
from pico_train.hub.push import push_run
from pico_train.hub.repository import HubConfig
from pico_train.model import decoder, stock
from pico_train.model.cost import count_parameters
from pico_train.model.decoder import Attention, DecoderConfig, KVCache, Layer, RMSNorm
from pico_train.model.stock import STOCK, architecture_of, stock_tensors
from pico_train.run import RunConfig
from pico_train.run.estimate import estimate
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

Tiny = Callable[..., RunConfig]
GEOMETRY = DecoderConfig(280, 32, 48, 2, 4, 2, 32)


class QKNormAttention(Attention):
    """The four lines of query and key norms."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        batch, tokens, width = x.shape
        query = decoder.rotate(self.q_norm(self._heads(self.q_proj(x))), cos, sin)
        key = decoder.rotate(self.k_norm(self._heads(self.k_proj(x))), cos, sin)
        value = self._heads(self.v_proj(x))
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        mixed = F.scaled_dot_product_attention(query, self._shared(key), self._shared(value), is_causal=tokens > 1)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class BiasedAttention(Attention):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=True)


class GeGLU(nn.Module):
    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return F.gelu(gate) * up


class HalvedLayer(Layer):
    def forward(self, x: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        return x + 0.5 * (super().forward(x, *given, **options) - x)


def interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    turned = (first * cos[:, :half] - second * sin[:, :half], second * cos[:, :half] + first * sin[:, :half])
    return torch.stack(turned, -1).flatten(-2).to(x.dtype)


def windowed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool) -> torch.Tensor:
    """Attention to the last 1,024 tokens alone."""
    tokens = query.shape[2]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().triu(-1023)
    return ORIGINAL_ATTENTION(query, key, value, attn_mask=mask)


ORIGINAL_ATTENTION = F.scaled_dot_product_attention
LOGITS = r"logits on \d+ tokens differ by .* of the largest from those of LlamaForCausalLM"
CHANGES = {
    "norms of queries and keys": (
        ("Attention", QKNormAttention),
        r"the tensor \"model.layers.0.self_attn.q_norm.weight\" is not one of LlamaForCausalLM's",
    ),
    "a bias": (
        ("Attention", BiasedAttention),
        r"the tensor \"model.layers.0.self_attn.q_proj.bias\" is not one of LlamaForCausalLM's",
    ),
    "another activation": (("SwiGLU", GeGLU), LOGITS),
    "a scaled residual": (("Layer", HalvedLayer), LOGITS),
    "interleaved rotation": (("rotate", interleaved), LOGITS),
    "an attention window": (("F.scaled_dot_product_attention", windowed), LOGITS),
}
"""Kind of change -> (name in model/decoder.py, its replacement), what is said of it."""


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def change(kind: str) -> None:
        (name, replacement), _ = CHANGES[kind]
        monkeypatch.setattr(f"pico_train.model.decoder.{name}", replacement)

    return change


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_decoder_is_found_out(changed: Callable[[str], None], kind: str) -> None:
    config = dataclasses.replace(GEOMETRY, max_position_embeddings=2048)
    assert architecture_of(config) == STOCK
    changed(kind)
    found = architecture_of(config)
    assert not found.is_stock
    assert found.name == "pico_train.model.decoder.Decoder"
    assert re.fullmatch(CHANGES[kind][1], found.departure)
    assert len(found.source_sha256) == 64


@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": True}, {"rope_theta": 1e5, "rms_norm_eps": 1e-5}])
def test_the_reference_holds_and_computes_what_transformers_does(change: dict[str, Any]) -> None:
    """The names, shapes and equations in model/stock.py are those of the class, not of our decoder."""
    config = dataclasses.replace(GEOMETRY, **change)
    settings = dataclasses.asdict(config)
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    model = LlamaForCausalLM(LlamaConfig(**settings)).double().eval()
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    assert stock.shapes_of(tensors) == stock_tensors(dataclasses.asdict(config))
    ids = torch.randint(280, (2, 32))
    with torch.no_grad():
        expected = model(ids).logits
    torch.testing.assert_close(stock.stock_logits(config, tensors, ids), expected, rtol=1e-6, atol=1e-7)


def test_a_buffer_that_no_checkpoint_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Buffered(Layer):
        def __init__(self, config: DecoderConfig, layer: int) -> None:
            super().__init__(config, layer)
            self.register_buffer("running", torch.zeros(3))

    monkeypatch.setattr(decoder, "Layer", Buffered)
    with pytest.raises(ValueError, match=r'has the buffer "model.layers.0.running", which checkpoints do not hold'):
        architecture_of(GEOMETRY)


@pytest.mark.parametrize("kind", ["norms of queries and keys", "another activation"])
def test_a_run_of_a_changed_decoder_works_and_never_says_llama(
    tiny: Tiny, changed: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    changed(kind)
    config = tiny(**{"train.steps": 4, "checkpoint.every": 2})
    (line,) = (line for line in estimate(config, "test.yaml") if line.startswith("architecture"))
    assert re.search(CHANGES[kind][1], line)
    assert "neither exported nor pushed" in line
    train(config, quiet=True)
    run = config.layout.root
    manifest = json.loads(config.layout.manifest.read_text())
    assert manifest["stock"] is False
    assert manifest["architecture"]["name"] == "pico_train.model.decoder.Decoder"
    stored = codec.read_tensors(config.layout.checkpoint(4) / MODEL_WEIGHTS)
    assert manifest["parameters"]["total"] == sum(tensor.numel() for tensor in stored.values())
    whole = {name: tensor.clone() for name, tensor in stored.items()}

    with pytest.raises(ValueError, match="model type `pico-decoder`"):
        AutoModelForCausalLM.from_pretrained(config.layout.checkpoint(4))
    for refused in (
        lambda: export_checkpoint(run, out=run.parent / "exported"),
        lambda: push_run(run, HubConfig(repo="me/mine"), print),
        lambda: train(tiny(**{"name": "pushed", "hub.repo": "me/mine"}), quiet=True),
    ):
        with pytest.raises(UserError, match=CHANGES[kind][1]):
            refused()
    assert not (run.parent / "exported").exists()

    assert "perplexity" in evaluate_run(run, None, None)
    assert generate_text(run, "the king", None, 4, 0.0, None, None, 0)
    for name, tensor in open_checkpoint(run, 4)[2].named_parameters():
        assert torch.equal(tensor, whole[name])
    heir = tiny(**{"name": "heir", "hub.repo": None, "init_from": f"{run}@4", "train.steps": 2})
    assert train(heir, quiet=True).status == "finished"
    assert json.loads((heir.layout.checkpoint(0) / MODEL_CONFIG).read_text())["model_type"] == "pico-decoder"

    monkeypatch.undo()  # the decoder is what it was
    sentence = r"it is a model of pico_train.model.decoder.Decoder \(source .*\), but this decoder is LlamaForCausalLM"
    for refused in (
        lambda: evaluate_run(run, None, None),
        lambda: generate_text(run, "the king", None, 4, 0.0, None, None, 0),
        lambda: train(tiny(name="other", init_from=f"{run}@4"), quiet=True),
    ):
        with pytest.raises(UserError, match=sentence):
            refused()
    again = tiny(**{"name": "tiny", "init_from": None, "train.steps": 4})
    with pytest.raises(UserError, match=r"is another run: the decoder \(pico_train.* -> LlamaForCausalLM;"):
        train(again, quiet=True)


def test_a_stock_model_is_not_opened_by_a_changed_decoder(
    tiny: Tiny, changed: Callable[[str], None], tmp_path: Path
) -> None:
    config = tiny(**{"train.steps": 2})
    train(config, quiet=True)
    changed("another activation")
    with pytest.raises(UserError, match="it is a model of LlamaForCausalLM, but this decoder is pico_train"):
        open_checkpoint(config.layout.root, None)


def test_parameters_are_counted_on_the_module(changed: Callable[[str], None]) -> None:
    """The formula of a Llama is the oracle for the stock decoder, and wrong for another."""
    width, kv, inner, layers, vocab = 32, 16, 48, 2, 280
    expected = {
        "total": 2 * vocab * width + layers * (2 * width * (width + kv) + 3 * width * inner) + 5 * width,
        "embedding": vocab * width,
        "attention": layers * 2 * width * (width + kv),
        "mlp": layers * 3 * width * inner,
        "norms": (2 * layers + 1) * width,
        "head": vocab * width,
    }
    assert count_parameters(GEOMETRY) == expected
    tied = count_parameters(dataclasses.replace(GEOMETRY, tie_word_embeddings=True))
    assert tied == {**expected, "head": 0, "total": expected["total"] - vocab * width}
    changed("norms of queries and keys")
    normed = count_parameters(GEOMETRY)
    assert normed["norms"] == expected["norms"] + layers * 2 * 8
    assert normed["total"] == expected["total"] + layers * 2 * 8
