"""Generation of text: the decoder run token by token with a key-value cache."""

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
    _check_length(input_ids.shape[1], max_new_tokens, decoder.config.max_position_embeddings)
    draws = torch.Generator().manual_seed(seed)
    cache = KVCache(decoder.config.num_hidden_layers)
    ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    tokens = input_ids  # the whole prompt first, then the newest token alone
    for _ in range(max_new_tokens):
        hidden = decoder.model(tokens, cache)[:, -1]  # (B, D)
        logits = decoder.lm_head(hidden).float()  # (B, V)
        tokens = _sample(logits, temperature, top_k, top_p, draws)
        if eos_token_id is not None:
            tokens = torch.where(ended[:, None], input_ids[:, -1:], tokens)
            ended |= torch.isin(tokens[:, 0], torch.tensor(eos_token_id, device=tokens.device))
        input_ids = torch.cat((input_ids, tokens), dim=1)
        if bool(ended.all()):
            break
    return input_ids


def _check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; it must fit into 64 bits")


def _check_length(prompt: int, new: int, positions: int) -> None:
    if prompt == 0:
        raise ValueError("the prompt is empty: give at least one token")
    if prompt + new > positions:
        raise ValueError(
            f"{prompt} prompt tokens and {new} new ones exceed the {positions} positions"
        )


def _sample(
    logits: torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    draws: torch.Generator,
) -> torch.Tensor:
    """Draw token ids (B, 1) from logits (B, V), on CPU: a seed means the same on every device."""
    if temperature < 1e-6:  # greedy; below, the division would overflow
        return logits.argmax(-1, keepdim=True)
    # A stable sort leaves equal logits in the order of their ids on every device.
    ordered, ids = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    probabilities = ordered.softmax(-1)
    if top_p is not None:
        # A token stays if the mass before it is below top_p: the most likely one always stays.
        mass_before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(mass_before >= top_p, 0.0)
    drawn = torch.multinomial(probabilities.cpu(), 1, generator=draws).to(ids.device)
    return ids.gather(-1, drawn)
