"""Generation: tokens drawn one after another, with a key-value cache.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math

import torch

from pico_train.model.decoder import Decoder, KVCache


@torch.no_grad()
def generate(
    decoder: Decoder,
    input_ids: torch.Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_token_id: int | list[int] | None = None,
) -> torch.Tensor:
    """Continue `input_ids` (B, T) by up to `max_new_tokens`, decoding with a key-value cache.

    Temperature 0 is greedy. After `eos_token_id` (any of several) a row repeats it; generation ends
    when every row has met one.

    Raises:
        ValueError: an empty prompt, prompt and new tokens exceed `max_position_embeddings`, or a
            temperature, top_k, top_p or seed out of its range.
    """
    _check_sampling(temperature, top_k, top_p, seed)
    length, limit = input_ids.shape[1], decoder.config.max_position_embeddings
    if length == 0:
        raise ValueError("the prompt is empty: give at least one token")
    if length + max_new_tokens > limit:
        raise ValueError(
            f"{length} prompt tokens and {max_new_tokens} new ones exceed the {limit} positions"
        )
    draws = torch.Generator().manual_seed(seed)
    cache, fed = KVCache(decoder.config.num_hidden_layers), input_ids
    ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        logits = decoder.lm_head(decoder.model(fed, cache)[:, -1]).float()  # (B, V)
        fed = _sample(logits, temperature, top_k, top_p, draws)
        if eos_token_id is not None:
            fed = torch.where(ended[:, None], input_ids[:, -1:], fed)
            ended |= torch.isin(fed[:, 0], torch.tensor(eos_token_id, device=fed.device))
        input_ids = torch.cat((input_ids, fed), dim=1)
        if bool(ended.all()):
            break
    return input_ids


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None, seed: int) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; it must fit into 64 bits")


def _sample(
    logits: torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    draws: torch.Generator,
) -> torch.Tensor:
    """(B, V) logits -> (B, 1) token ids; drawn on CPU so that a seed means the same on every
    device."""
    if temperature < 1e-6:  # greedy; below, the division would overflow
        return logits.argmax(-1, keepdim=True)
    ordered, ids = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    probabilities = ordered.softmax(-1)
    if top_p is not None:
        # A token stays while the mass before it is below top_p, so the most likely one always
        # stays.
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(probabilities.cpu(), 1, generator=draws).to(ids.device)
    return ids.gather(-1, drawn)
