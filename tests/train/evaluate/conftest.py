"""A small decoder far from uniform, and what transformers makes of the same weights one text at a time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from pico_train.data.packed import PackedData
from pico_train.model.decoder import Decoder, DecoderConfig


@pytest.fixture
def data(data_dir: Path) -> PackedData:
    return PackedData.open(data_dir)


@pytest.fixture
def decoder() -> Decoder:
    """24 positions, vocabulary 280."""
    made = Decoder(DecoderConfig(280, 32, 48, 2, 4, 2, max_position_embeddings=24))
    made.init_weights(lambda name: torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        made.lm_head.weight.mul_(20)
    return made.eval()


class Reference:
    """-ln p of each id of a sequence but its first, from the logits of transformers' Llama in float64."""

    def __init__(self, decoder: Decoder) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        self.model = LlamaForCausalLM(LlamaConfig(**asdict(decoder.config))).eval()
        self.model.load_state_dict(decoder.state_dict())

    @torch.no_grad()
    def token_nll(self, ids: list[int] | np.ndarray) -> np.ndarray:
        sequence = torch.as_tensor(np.asarray(ids))
        logits = self.model(input_ids=sequence[None, :-1]).logits[0].double()
        return -logits.log_softmax(-1).gather(1, sequence[1:, None])[:, 0].numpy()


@pytest.fixture
def reference(decoder: Decoder) -> Reference:
    return Reference(decoder)
