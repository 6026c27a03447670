"""The part of the command `generate` that runs and model directories share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pico_contract.errors import UserError

from pico_train.checkpoint.model_folder import start_token
from pico_train.model.decoder import Decoder
from pico_train.model.generate import generate
from pico_train.model.hf import SpecialTokens


@dataclass(frozen=True)
class Sampling:
    """Settings of the draw of new tokens: temperature 0 is greedy, None keeps all tokens."""

    tokens: int
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


def require_utf8(prompt: str) -> None:
    """Refuse a prompt with bytes that the terminal could not decode."""
    # Python passes such bytes on as lone surrogates (PEP 383), which tokenizers cannot encode.
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError("the prompt is not UTF-8")


def continue_ids(
    decoder: Decoder,
    decode: Callable[[list[int]], str],
    ids: Sequence[int],
    sampling: Sampling,
    token_ids: SpecialTokens,
    where: str,
) -> str:
    """Draw tokens that follow `ids` until end-of-text, and `decode` all of them.

    An empty prompt begins with the token that texts of this model begin after.

    Raises:
        UserError: there is no id to begin with, or prompt and new tokens exceed the model's
            positions; the message names `where`.
    """
    _, start = start_token(token_ids)
    if not ids and start is not None:
        ids = [start]
    if not ids:
        raise UserError(
            f"{where}: the prompt is empty, and no token is named that a text begins with: give a prompt"
        )
    try:
        continued = generate(
            decoder,
            torch.tensor([list(ids)]),
            sampling.tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            eos_token_id=token_ids.get("eos"),
        )
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return decode(continued[0].tolist())
