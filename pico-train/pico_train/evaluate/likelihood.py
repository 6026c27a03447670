"""Log-probabilities of token sequences under a model, in batches of similar length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from pico_contract.errors import UserError

from pico_train.data.byte_lengths import token_byte_lengths, written_byte_lengths
from pico_train.data.tokenizer import Vocabulary, encode, load_tokenizer, pieces
from pico_train.errors import NonFiniteError
from pico_train.evaluate.progress import Advance, ignore
from pico_train.model.decoder import Decoder
from pico_train.model.loss import IGNORE

StartToken = Literal["eos", "none"]
"""What a text is preceded by. With "none" its first token is context only and its probability is
left out."""


class TextEncoder:
    """Text to token ids with the tokenizer of a vocabulary, after a start token or after
    nothing."""

    def __init__(self, vocabulary: Vocabulary, start_token: StartToken) -> None:
        """
        Raises:
            UserError: `start_token` is "eos" and the vocabulary has no such token.
        """
        if start_token == "eos" and vocabulary.eos is None:
            raise UserError(
                f'{vocabulary.origin} names no end-of-text token to start texts with: set start_token to "none"'
            )
        self._start = [vocabulary.eos] if start_token == "eos" else []
        self._vocabulary = vocabulary
        self._tokenizer = (
            load_tokenizer(vocabulary.tokenizer) if vocabulary.tokenizer is not None else None
        )
        self._written = (
            written_byte_lengths(self._tokenizer) if self._tokenizer is not None else None
        )
        self._known = token_byte_lengths(self._tokenizer) if self._tokenizer is not None else None

    def settings(self) -> dict[str, Any]:
        """What of this decides a result."""
        path = self._vocabulary.tokenizer
        name = self._vocabulary.start_name
        start = (
            f"{name} (id {self._start[0]})"
            if self._start
            else "none; the first id of each text is context only"
        )
        counted = (
            {}
            if self._tokenizer is None or self._known is not None
            else {"bytes": "of the texts; not of ids"}
        )
        return {
            "start_token": start,
            "tokenizer": hashlib.sha256(path.read_bytes()).hexdigest()
            if path is not None
            else None,
            **counted,
        }

    def __call__(
        self, document: str | np.ndarray, where: str = "a text to evaluate on"
    ) -> np.ndarray:
        """Encode `document` (text, or ids already) after the start token, where there is one: ids
        (T,) int64.

        Raises:
            UserError: text without a tokenizer, an id outside the vocabulary, or the name of a
                special token in a text (named by `where`) that the tokenizer cannot read as text.
        """
        if isinstance(document, str):
            if self._tokenizer is None:
                raise UserError(
                    f"{self._vocabulary.origin} came without a tokenizer, so that no text can be evaluated on it"
                )
            document = encode(self._tokenizer, document, where)
        elif document.size and not (document.min() >= 0 and document.max() < self._vocabulary.size):
            raise UserError(
                f"{where} holds token ids outside the vocabulary of {self._vocabulary.size}"
            )
        return np.concatenate((np.array(self._start, dtype=np.int64), document))

    def predicted_bytes(self, document: str | np.ndarray, ids: np.ndarray) -> int | None:
        """Count the bytes of text that `ids[1:]` stand for, where `ids` are this encoder's of
        `document`.

        Of a text they are its own bytes, less those of its first token where that is context only;
        of ids they are None unless the tokenizer lets them be told from the ids.
        """
        if not isinstance(document, str):
            return int(self._known[ids[1:]].sum()) if self._known is not None else None
        total = len(document.encode())
        return (
            total
            if self._start or not ids.size
            else total - self._first_bytes(document, ids, total)
        )

    def _first_bytes(self, text: str, ids: np.ndarray, total: int) -> int:
        """Bytes of a text up to the end of its first token, which may be a part of a character."""
        assert self._tokenizer is not None
        assert self._written is not None
        if self._written[ids].sum() == total:
            return int(self._written[ids[0]])
        encoded = self._tokenizer.encode(pieces(self._tokenizer, text)[0], add_special_tokens=False)
        return len(text[: encoded.offsets[0][1]].encode())


@torch.no_grad()
def sequence_nll(
    model: Decoder, sequences: list[np.ndarray], batch_tokens: int, advance: Advance = ignore
) -> np.ndarray:
    """-ln p(s_1 .. s_T | s_0) of each sequence s (int64 (T + 1,)): float64 (N,), nats; 0 where T is
    not positive.

    Sequences of similar length share a forward pass of at most `batch_tokens` tokens (or of one
    sequence), padded at the end, where causal attention of what comes before does not see it. Token
    losses are float32, sums float64. `advance` is called with the number of sequences of each pass.

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
        raise NonFiniteError(
            "the loss on the evaluated texts is not finite: neither are the model's outputs"
        )
    return totals


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices of sequences that share a pass, shortest first; those that predict nothing are left
    out."""
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
