"""Perplexity: closed forms, bytes counted from the text, and what may not matter."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pico_train.data.packed import PackedData
from pico_train.data.tokenizer import load_tokenizer, token_byte_lengths
from pico_train.errors import NonFiniteError
from pico_train.evaluate.perplexity import perplexity
from pico_train.model.decoder import Decoder, DecoderConfig
from torch import nn

VOCAB = 280


@pytest.fixture
def data(data_dir: Path) -> PackedData:
    return PackedData.open(data_dir)


@pytest.fixture
def model() -> Decoder:
    config = DecoderConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    decoder = Decoder(config)
    decoder.init_weights(lambda name: torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        decoder.lm_head.weight.mul_(20)  # far from uniform
    return decoder.eval()


def measured(model: Decoder, data: PackedData, n_rows: int = 20, seq_len: int = 16, batch: int = 7) -> dict[str, float]:
    lengths = token_byte_lengths(load_tokenizer(data.path))
    found = perplexity(model, data.split("validation"), n_rows, seq_len, batch, lengths)
    return {name: value.value for name, value in found.items()}


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(model: Decoder, data: PackedData) -> None:
    nn.init.zeros_(model.lm_head.weight)
    found = measured(model, data)
    assert found["loss"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert found["perplexity"] == pytest.approx(VOCAB, rel=1e-5)


def test_a_model_of_one_distribution_has_its_cross_entropy(model: Decoder, data: PackedData) -> None:
    """Every hidden state made equal, the logits are the same at each place: unigram probabilities."""
    logits = torch.linspace(-3, 3, VOCAB)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(logits[:, None] / 32)
    labels = data.split("validation").take(np.arange(20))[:, 1:]
    expected = -torch.log_softmax(logits.double(), 0)[torch.from_numpy(labels)].mean().item()
    assert measured(model, data)["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_mean_of_cross_entropy_over_all_predicted_tokens(model: Decoder, data: PackedData) -> None:
    ids = torch.from_numpy(data.split("validation").take(np.arange(20)))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(ids[:, :-1]).double().flatten(0, 1), ids[:, 1:].flatten()).item()
    found = measured(model, data)
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["perplexity"] == math.exp(found["loss"])


def test_bits_per_byte_from_the_bytes_of_the_text(model: Decoder, data: PackedData) -> None:
    """The text of the predicted tokens is decoded anew; end-of-text adds its loss, but no bytes."""
    labels = data.split("validation").take(np.arange(20))[:, 1:]
    texts = load_tokenizer(data.path).decode_batch(labels.tolist(), skip_special_tokens=True)
    n_bytes = sum(len(text.encode()) for text in texts)
    assert any(0 in row for row in labels)
    lengths = token_byte_lengths(load_tokenizer(data.path))
    found = perplexity(model, data.split("validation"), 20, 16, 7, lengths)
    assert found["bits_per_byte"].n == n_bytes
    expected = found["loss"].value * found["loss"].n / math.log(2) / n_bytes
    assert found["bits_per_byte"].value == pytest.approx(expected, rel=1e-12)
    assert [(m.unit, m.n) for m in (found["loss"], found["perplexity"])] == [("nats/token", 320), ("1", 320)]


def test_without_a_tokenizer_there_are_no_bits_per_byte(model: Decoder, data: PackedData) -> None:
    assert set(perplexity(model, data.split("validation"), 4, 16, 4, None)) == {"loss", "perplexity"}


@pytest.mark.parametrize("batch", [1, 3, 20, 64])
def test_the_batch_size_changes_nothing_beyond_rounding(model: Decoder, data: PackedData, batch: int) -> None:
    assert measured(model, data, batch=batch) == pytest.approx(measured(model, data, batch=20), rel=1e-6)


def test_only_the_first_rows_and_tokens_count(model: Decoder, data: PackedData) -> None:
    ids = torch.from_numpy(data.split("validation").take(np.arange(5)))[:, :10]
    with torch.no_grad():
        expected = model.token_nll(ids[:, :-1], ids[:, 1:]).double().mean().item()
    assert measured(model, data, n_rows=5, seq_len=9, batch=2)["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_loss_whose_exponential_no_float_holds_has_no_perplexity(model: Decoder, data: PackedData) -> None:
    """A run that diverges is still measured."""
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    found = measured(model, data)
    assert found["loss"] > 710
    assert set(found) == {"loss", "bits_per_byte"}


def test_measuring_leaves_no_gradient(model: Decoder, data: PackedData) -> None:
    measured(model, data, n_rows=2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_no_number_is_a_failure(model: Decoder, data: PackedData) -> None:
    with torch.no_grad():
        model.lm_head.weight[5, 0] = math.nan
    with pytest.raises(NonFiniteError, match="the loss on the validation rows is nan"):
        measured(model, data)
