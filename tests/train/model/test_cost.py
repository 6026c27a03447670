"""Parameters and FLOPs, counted by hand."""

import pytest
import torch
from pico_train.model.cost import count_parameters, flops_per_token
from pico_train.model.decoder import Decoder, DecoderConfig


@pytest.mark.parametrize(
    ("width", "total"), [(96, 11_282_784), (384, 64_595_328), (768, 181_095_168), (1536, 569_808_384)]
)
def test_parameter_counts_of_the_pico_decoders(width, total):
    config = DecoderConfig(hidden_size=width, intermediate_size=4 * width)
    assert count_parameters(config)["total"] == total
    with torch.device("meta"):
        assert sum(p.numel() for p in Decoder(config).parameters()) == total


def test_flops_of_a_hand_counted_shape():
    config = DecoderConfig(10, 4, 6, 1, 2, 1, 8)
    assert flops_per_token(config, 5) == 6 * (2 * 16 + 2 * 8 + 3 * 24 + 40) + 12 * 4 * 5
