"""Generation: greedy as transformers generates, seeded, filtered, and ended by end-of-text."""

import pytest
import torch
from pico_train.model.generate import generate

from .test_decoder import SHAPES, make, tokens, twin


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_decoding_equals_hugging_face_and_uncached(shape):
    model = make(SHAPES[shape])
    hf, ids = twin(model), tokens(SHAPES[shape], rows=2, length=1)
    made = generate(model, ids, 8, temperature=0)
    for length in range(1, 9):
        assert torch.equal(made[:, length], model(made[:, :length])[:, -1].argmax(-1))
    pad = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(made, hf.generate(ids, max_new_tokens=8, attention_mask=torch.ones_like(ids), **pad))


def test_sampling_is_seeded_and_filtered():
    model, ids = make(SHAPES["grouped"]), tokens(SHAPES["grouped"], rows=2, length=4)
    first = generate(model, ids, 12, seed=1)
    assert torch.equal(first, generate(model, ids, 12, seed=1))
    assert not torch.equal(first, generate(model, ids, 12, seed=2))
    greedy = generate(model, ids, 12, temperature=0)
    assert torch.equal(generate(model, ids, 12, temperature=1e-300), greedy)
    assert torch.equal(greedy, generate(model, ids, 12, top_k=1))
    assert torch.equal(greedy, generate(model, ids, 12, top_p=1e-6))
    assert generate(model, ids, 60).shape == (2, 64)
    with pytest.raises(ValueError, match="exceed the 64 positions"):
        generate(model, ids, 61)
    with pytest.raises(ValueError, match="empty"):
        generate(model, ids[:, :0], 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": 1 << 64},
    ],
    ids=str,
)
def test_impossible_sampling_is_refused(wrong):
    model, ids = make(SHAPES["grouped"]), tokens(SHAPES["grouped"], rows=1, length=4)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        generate(model, ids, 1, **wrong)


def test_generation_ends_at_eos():
    model, ids = make(SHAPES["grouped"]), tokens(SHAPES["grouped"], rows=1, length=2)
    free = generate(model, ids, 10, temperature=0)
    eos = int(free[0, 4])
    first = free[0].tolist().index(eos, 2)
    ended = generate(model, ids, 10, temperature=0, eos_token_id=eos)
    assert ended[0].tolist() == free[0, : first + 1].tolist()
