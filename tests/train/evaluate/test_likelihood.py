"""Log-probabilities of sentences: batched as one at a time, and what cannot have one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pico_contract.errors import UserError
from pico_train.data.packed import PackedData
from pico_train.data.tokenizer import load_tokenizer
from pico_train.errors import NonFiniteError
from pico_train.evaluate.likelihood import TextEncoder, sequence_nll
from pico_train.evaluate.minimal_pairs import MinimalPair, minimal_pairs, sentence_nll
from pico_train.model.decoder import Decoder

from .conftest import Reference
from .test_minimal_pairs import PAIRS


@pytest.mark.parametrize("start_token", ["eos", "none"])
@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_sentences_are_as_probable_as_one_at_a_time(
    decoder: Decoder, reference: Reference, data: PackedData, start_token: Any, batch_tokens: int
) -> None:
    """1e-4 nats: float32 in another order of summation; measured below 1e-5."""
    found = sentence_nll(decoder, PAIRS, TextEncoder(data.vocabulary, start_token), batch_tokens)
    assert len(found) == 9
    tokenizer = load_tokenizer(data.path)
    start = [tokenizer.token_to_id("<|endoftext|>")] if start_token == "eos" else []
    for sentence, nll in found.items():
        ids = tokenizer.encode(sentence, add_special_tokens=False).ids
        assert nll == pytest.approx(reference.token_nll(start + ids).sum(), abs=1e-4)


def test_sequences_that_predict_nothing_cost_nothing(decoder: Decoder) -> None:
    found = sequence_nll(decoder, [np.array([5]), np.array([], dtype=np.int64), np.array([5, 6])], 8)
    assert found[:2].tolist() == [0, 0]
    assert found[2] > 0


def test_outputs_that_are_no_numbers_are_a_failure(decoder: Decoder) -> None:
    with torch.no_grad():
        decoder.lm_head.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="the loss on the evaluated texts is not finite"):
        sequence_nll(decoder, [np.array([5, 6])], 8)


def test_a_sentence_beyond_the_positions_is_named(decoder: Decoder, data: PackedData) -> None:
    long = " ".join(["xyz"] * 30)
    with pytest.raises(UserError, match=r'the model has 24 positions, but "xyz .* needs \d+'):
        minimal_pairs(decoder, [MinimalPair("the", long, "p", "f")], TextEncoder(data.vocabulary, "eos"), 64)
