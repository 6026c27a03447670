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
"""The token before a text.
With "none" the first token of the text is context only: its probability is left out."""


class TextEncoder:
    """An encoder of texts with a vocabulary's tokenizer, after a start token or after nothing."""

    def __init__(self, vocabulary: Vocabulary, start_token: StartToken) -> None:
        """Load the tokenizer of `vocabulary`, if it has one.

        Raises:
            UserError: `start_token` is "eos" and the vocabulary has no such token.
        """
        if start_token == "eos" and vocabulary.eos is None:
            raise UserError(
                f'{vocabulary.origin} names no end-of-text token to start texts with: set start_token to "none"'
            )
        self._start = [vocabulary.eos] if start_token == "eos" else []
        self._vocabulary = vocabulary
        path = vocabulary.tokenizer
        self._tokenizer = load_tokenizer(path) if path is not None else None
        # Bytes of each id as the vocabulary writes it, and as text if ids alone determine them.
        self._written_bytes: np.ndarray | None = None
        self._text_bytes: np.ndarray | None = None
        if self._tokenizer is not None:
            self._written_bytes = written_byte_lengths(self._tokenizer)
            self._text_bytes = token_byte_lengths(self._tokenizer)

    def settings(self) -> dict[str, Any]:
        """Return everything about the encoding that decides a result."""
        path = self._vocabulary.tokenizer
        if self._start:
            start = f"{self._vocabulary.start_name} (id {self._start[0]})"
        else:
            start = "none; the first id of each text is context only"
        settings: dict[str, Any] = {"start_token": start, "tokenizer": None}
        if path is not None:
            # By content and not by path, so that results are still found after a run has moved.
            settings["tokenizer"] = hashlib.sha256(path.read_bytes()).hexdigest()
            if self._text_bytes is None:
                settings["bytes"] = "of the texts; not of ids"
        return settings

    def __call__(
        self, document: str | np.ndarray, where: str = "a text to evaluate on"
    ) -> np.ndarray:
        """Encode `document` (text or ids) after the start token, if any: ids (T,) int64.

        `where` names the text in errors.

        Raises:
            UserError: text without a tokenizer, an id outside the vocabulary, or the name of a
                special token in a text that the tokenizer cannot read as text.
        """
        if isinstance(document, str):
            if self._tokenizer is None:
                raise UserError(
                    f"{self._vocabulary.origin} came without a tokenizer, so that no text can be evaluated on it"
                )
            ids = encode(self._tokenizer, document, where)
        else:
            ids = document
            if ids.size and not (ids.min() >= 0 and ids.max() < self._vocabulary.size):
                raise UserError(
                    f"{where} holds token ids outside the vocabulary of {self._vocabulary.size}"
                )
        return np.concatenate((np.array(self._start, dtype=np.int64), ids))

    def predicted_bytes(self, document: str | np.ndarray, ids: np.ndarray) -> int | None:
        """Count the bytes of text that `ids[1:]` stand for; `ids` encode `document`.

        The bytes of a text are its own, less those of its first token if that is context only. The
        bytes of a document of ids are None unless ids alone determine them.
        """
        if not isinstance(document, str):
            return (
                int(self._text_bytes[ids[1:]].sum()) if self._text_bytes is not None else None
            )
        total = len(document.encode())
        if self._start or not ids.size:
            return total
        return total - self._first_bytes(document, ids, total)

    def _first_bytes(self, text: str, ids: np.ndarray, total: int) -> int:
        """Count the bytes of a text up to the end of its first token, maybe within a character."""
        assert self._tokenizer is not None
        assert self._written_bytes is not None
        # If the tokens' bytes add up to the text's, each token stands for exactly its own
        # bytes, even one that ends within a character; offsets count whole characters only.
        if self._written_bytes[ids].sum() == total:
            return int(self._written_bytes[ids[0]])
        # The vocabulary's bytes are not those of the text, so the tokenizer's offsets must do.
        encoded = self._tokenizer.encode(
            pieces(self._tokenizer, text)[0], add_special_tokens=False
        )
        return len(text[: encoded.offsets[0][1]].encode())


@torch.no_grad()
def sequence_nll(
    model: Decoder, sequences: list[np.ndarray], batch_tokens: int, advance: Advance = ignore
) -> np.ndarray:
    """Return -ln p(s_1 .. s_T | s_0) of each sequence s (int64 (T + 1,)): float64 (N,), nats.

    It is 0 for a sequence that predicts nothing (T < 1). Sequences of similar length share a
    forward pass of at most `batch_tokens` tokens (or of one sequence). Token losses are float32,
    sums float64. `advance` is called with the number of sequences of each pass.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    device = next(model.parameters()).device
    lengths = [len(sequence) for sequence in sequences]
    totals = np.zeros(len(sequences))
    for members in _batches(lengths, batch_tokens):
        ids, labels = _padded([sequences[i] for i in members])
        ids_on_device = torch.from_numpy(ids).to(device)
        labels_on_device = torch.from_numpy(labels).to(device)
        # The result moves to the CPU before it is widened below, because MPS has no float64.
        nll = model.token_nll(ids_on_device, labels_on_device)  # (B, T)
        # Padding has loss 0, so the sum is over the sequence alone.
        totals[members] = nll.cpu().double().sum(1).numpy()
        advance(len(members))
    if not np.isfinite(totals).all():
        raise NonFiniteError(
            "the loss on the evaluated texts is not finite: neither are the model's outputs"
        )
    return totals


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Yield indices of sequences that share a pass, shortest first.

    Sequences that predict nothing are left out.
    """
    batch: list[int] = []
    # A stable sort makes the batches, and with them the rounding, reproducible.
    for i in np.argsort(lengths, kind="stable"):
        # A single id predicts nothing.
        if lengths[i] < 2:
            continue
        # Shortest first: the sequence at hand is the longest, and sets the padding.
        if batch and (len(batch) + 1) * (lengths[i] - 1) > batch_tokens:
            yield np.array(batch)
            batch = []
        batch.append(int(i))
    if batch:
        yield np.array(batch)


def _padded(sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (input ids, labels), both (B, T) int64, padded at the end.

    Causal attention keeps earlier positions from seeing the padding.
    """
    inputs = [sequence[:-1] for sequence in sequences]
    labels = [sequence[1:] for sequence in sequences]
    # Any valid id may pad the inputs, because no label asks for a prediction there.
    return _padded_rows(inputs, 0), _padded_rows(labels, IGNORE)


def _padded_rows(rows: list[np.ndarray], padding: int) -> np.ndarray:
    longest = max(len(row) for row in rows)
    padded = np.full((len(rows), longest), padding, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded
