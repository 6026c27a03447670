"""Perplexity on named sources of text, whatever the texts' lengths."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pico_contract.errors import UserError
from pico_contract.schema import Measured
from pydantic import Field

from pico_train.config import Section
from pico_train.data.sources import Document, SourceConfig, documents
from pico_train.evaluate.likelihood import StartToken, TextEncoder, sequence_nll
from pico_train.evaluate.perplexity import LARGEST_LOSS, token_metrics
from pico_train.model.decoder import Decoder

_PASSES = 16
"""Forward passes whose windows are sorted by length together."""


class TextPerplexityConfig(Section):
    """Perplexity on texts, by source."""

    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    """Name -> a path, or a source with its field, separator, split and subset; empty is off."""
    texts: int | None = Field(None, ge=1)
    """How many texts of each source, from its first; null is all."""
    seq_len: int | None = Field(None, ge=1)
    """Tokens that a window of a text predicts; null is as many as training reads, and the model's positions at most."""
    start_token: StartToken = "eos"
    """What precedes each text: the end-of-text token, or nothing ("none"), which leaves out the first token."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens a forward pass; changes no result beyond rounding."""


@dataclass
class _Texts:
    """Documents as they pass by, counted, and hashed so that a result says on what it rests."""

    documents: Iterator[Document]
    count: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def __iter__(self) -> Iterator[Document]:
        for document in self.documents:
            content = document.encode() if isinstance(document, str) else document.astype("<i8").tobytes()
            self.digest.update(f"{len(content)}\x1f".encode() + content)
            self.count += 1
            yield document


@dataclass
class Losses:
    """Of each text that has a token to predict: negative log-likelihood (nats, float64) and predicted tokens."""

    nll: np.ndarray
    tokens: np.ndarray
    bytes: int

    def metrics(self) -> dict[str, Measured]:
        """`token_metrics` of all tokens, and mean_text_perplexity = mean over texts of exp(nll / tokens)."""
        metrics = token_metrics(float(self.nll.sum()), int(self.tokens.sum()), self.bytes)
        return metrics | _mean_text_perplexity(self.nll / self.tokens)


def text_perplexity(
    model: Decoder, config: TextPerplexityConfig, encoder: TextEncoder, window: int
) -> tuple[dict[str, Any], dict[str, Measured]]:
    """(settings, metrics) of `config.sources`.

    `NAME/SOURCE` for loss, perplexity, bits_per_byte and mean_text_perplexity of each source; `NAME` is the mean over
    sources, but for mean_text_perplexity over the texts of them all, as in the published Pico numbers. That mean is
    dominated by a few short or strange texts: it is there for comparison with those numbers.

    A text is read in disjoint windows of `window` predicted tokens, each from the token before its first, so that every
    token is predicted once. The end of a text is not predicted.

    Raises:
        UserError: no source is configured, one cannot be read, or one has no token to predict.
    """
    if not config.sources:
        raise UserError("text_perplexity has no text: set evaluate.text_perplexity.sources to {name: path}")
    stated, found = {}, {}
    for name, source in config.sources.items():
        texts = _Texts(itertools.islice(documents(source), config.texts))
        found[name] = _losses(model, map(encoder, texts), encoder.byte_lengths, config.batch_tokens, window)
        if not found[name].tokens.size:
            raise UserError(f'evaluate.text_perplexity.sources.{name}: "{source.path}" has no token to predict')
        stated[name] = {"texts": texts.count, "sha256": texts.digest.hexdigest()}
    settings = {"sources": stated, "windows": f"disjoint, {window} predicted tokens"}
    return settings | encoder.settings(), _summary(found)


def _losses(
    model: Decoder, sequences: Iterator[np.ndarray], byte_lengths: np.ndarray | None, batch_tokens: int, window: int
) -> Losses:
    nll: list[np.ndarray] = [np.zeros(0)]
    tokens: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    bytes_ = 0
    for texts in _lots(sequences, _PASSES * batch_tokens):
        windows = [list(_windows(ids, window)) for ids in texts]
        owner = np.repeat(np.arange(len(texts)), [len(of) for of in windows])
        totals = sequence_nll(model, list(itertools.chain.from_iterable(windows)), batch_tokens)
        nll.append(np.bincount(owner, weights=totals, minlength=len(texts)))
        tokens.append(np.array([len(ids) - 1 for ids in texts], dtype=np.int64))
        bytes_ += sum(int(byte_lengths[ids[1:]].sum()) for ids in texts) if byte_lengths is not None else 0
    return Losses(np.concatenate(nll), np.concatenate(tokens), bytes_)


def _lots(sequences: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Sequences that predict something, in lists of about `size` tokens."""
    lot: list[np.ndarray] = []
    tokens = 0
    for ids in sequences:
        if len(ids) < 2:
            continue
        lot.append(ids)
        tokens += len(ids)
        if tokens >= size:
            yield lot
            lot, tokens = [], 0
    if lot:
        yield lot


def _windows(ids: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(ids) - 1, size):
        yield ids[start : start + size + 1]


def _summary(found: dict[str, Losses]) -> dict[str, Measured]:
    by_source = {name: losses.metrics() for name, losses in found.items()}
    metrics = {}
    for metric in ("loss", "perplexity", "bits_per_byte"):
        of = [metrics_[metric] for metrics_ in by_source.values() if metric in metrics_]
        if len(of) == len(found):  # a mean over some of the sources would be another number
            metrics[metric] = Measured(
                value=float(np.mean([m.value for m in of])), unit=of[0].unit, n=sum(m.n for m in of)
            )
    metrics |= _mean_text_perplexity(np.concatenate([losses.nll / losses.tokens for losses in found.values()]))
    return metrics | {f"{metric}/{name}": m for name, of in by_source.items() for metric, m in of.items()}


def _mean_text_perplexity(losses: np.ndarray) -> dict[str, Measured]:
    """Absent where float64 does not hold it."""
    if losses.max() >= LARGEST_LOSS:
        return {}
    value = float(np.mean(np.exp(losses)))
    return {"mean_text_perplexity": Measured(value=value, unit="1", n=len(losses))} if math.isfinite(value) else {}
