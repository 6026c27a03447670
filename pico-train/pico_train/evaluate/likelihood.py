"""Log-probabilities of token sequences under a model, in batches of similar length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from pico_contract.errors import UserError

from pico_train.data.tokenizer import Vocabulary, encode, load_tokenizer, token_byte_lengths
from pico_train.evaluate.progress import Advance, ignore
from pico_train.failure import NonFiniteError
from pico_train.model.decoder import Decoder
from pico_train.model.loss import IGNORE

StartToken = Literal["eos", "none"]
"""What a text is preceded by. With "none" its first token is context only and its probability is left out."""


class TextEncoder:
    """Text to token ids with the tokenizer of a vocabulary, after a start token or after nothing."""

    def __init__(self, vocabulary: Vocabulary, start_token: StartToken) -> None:
        """
        Raises:
            UserError: `start_token` is "eos" and the vocabulary has no such token.
        """
        if start_token == "eos" and vocabulary.eos is None:
            raise UserError(
                f'{vocabulary.place} names no end-of-text token to start texts with: set start_token to "none"'
            )
        self._start = [vocabulary.eos] if start_token == "eos" else []
        self._vocabulary = vocabulary
        self._tokenizer = load_tokenizer(vocabulary.tokenizer) if vocabulary.tokenizer is not None else None

    @property
    def byte_lengths(self) -> np.ndarray | None:
        """Bytes of each vocabulary entry, (vocab,) int64; None without a tokenizer."""
        return None if self._tokenizer is None else token_byte_lengths(self._tokenizer)

    def settings(self) -> dict[str, Any]:
        """What of this decides a result."""
        path = self._vocabulary.tokenizer
        start = f"eos (id {self._start[0]})" if self._start else "none; the first id of each text is context only"
        return {
            "start_token": start,
            "tokenizer": hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None,
        }

    def __call__(self, document: str | np.ndarray) -> np.ndarray:
        """The start token, where there is one, and the ids of `document` (text, or ids already), (T,) int64.

        Raises:
            UserError: text without a tokenizer, or an id outside the vocabulary.
        """
        if isinstance(document, str):
            if self._tokenizer is None:
                raise UserError(
                    f"{self._vocabulary.place} came without a tokenizer, so that no text can be evaluated on it"
                )
            document = encode(self._tokenizer, document)
        elif document.size and not (document.min() >= 0 and document.max() < self._vocabulary.size):
            raise UserError(f"a text to evaluate on holds token ids outside the vocabulary of {self._vocabulary.size}")
        return np.concatenate((np.array(self._start, dtype=np.int64), document))


@torch.no_grad()
def sequence_nll(
    model: Decoder, sequences: list[np.ndarray], batch_tokens: int, advance: Advance = ignore
) -> np.ndarray:
    """-ln p(s_1 .. s_T | s_0) of each sequence s (int64 (T + 1,)): float64 (N,), nats; 0 where T is not positive.

    Sequences of similar length share a forward pass of at most `batch_tokens` tokens (or of one sequence), padded at
    the end, where causal attention of what comes before does not see it. Token losses are float32, sums float64.
    `advance` is called with the number of sequences of each pass.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    device = next(model.parameters()).device
    totals = np.zeros(len(sequences))
    for members in _batches([len(s) for s in sequences], batch_tokens):
        ids, labels = _padded([sequences[i] for i in members])
        nll = model.token_nll(torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device))
        totals[members] = nll.cpu().double().sum(1).numpy()
        advance(len(members))
    if not np.isfinite(totals).all():
        raise NonFiniteError("the loss on the evaluated texts is not finite: neither are the model's outputs")
    return totals


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices of sequences that share a pass, shortest first; those that predict nothing are left out."""
    batch: list[int] = []
    for i in np.argsort(lengths, kind="stable"):
        if lengths[i] < 2:
            continue
        if batch and (len(batch) + 1) * (lengths[i] - 1) > batch_tokens:
            yield np.array(batch)
            batch = []
        batch.append(int(i))
    if batch:
        yield np.array(batch)


def _padded(sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(input ids, labels), both (B, T) int64."""
    shape = len(sequences), max(map(len, sequences)) - 1
    ids, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence) - 1] = sequence[:-1]
        labels[row, : len(sequence) - 1] = sequence[1:]
    return ids, labels
