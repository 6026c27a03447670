"""Perplexity on named sources of text, whatever the texts' lengths.

A text longer than a window of T predicted tokens is read in disjoint windows, each from the token
before its first, so that every token is predicted once. The end of a text is not predicted.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pico_contract.errors import UserError
from pico_contract.schema import Measured
from pydantic import Field

from pico_train.config import Section
from pico_train.data.sources import Document, SourceConfig, documents
from pico_train.evaluate.likelihood import StartToken, TextEncoder, sequence_nll
from pico_train.evaluate.perplexity import LARGEST_LOSS, token_metrics
from pico_train.evaluate.progress import Advance, ignore
from pico_train.model.decoder import Decoder

_PASSES = 16
"""Forward passes whose windows are sorted by length together."""


Sources = Mapping[str, Callable[[], Iterator[Document]]]
"""Name of a source -> what begins to read its documents, each time from the first."""


class TextsConfig(Section):
    """How texts are read by a model."""

    texts: int | None = Field(None, ge=1)
    """How many texts of each source, from its first; null is all."""
    seq_len: int | None = Field(None, ge=1)
    """Tokens that a window of a text predicts; null is as many as training reads, and the model's
    positions at most."""
    start_token: StartToken = "eos"
    """What precedes each text: the end-of-text token, or nothing ("none"), which leaves out the
    first token."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens a forward pass; changes no result beyond rounding."""


class TextPerplexityConfig(TextsConfig):
    """Perplexity on texts, by source."""

    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    """Name -> a path, or a source with its field, separator, split and subset; empty is off."""

    def reading(self) -> Sources:
        """The documents of each source.

        Raises:
            UserError: no source is configured.
        """
        if not self.sources:
            raise UserError(
                "text_perplexity has no text: set evaluate.text_perplexity.sources to {name: path}"
            )
        return {name: partial(documents, source) for name, source in self.sources.items()}


@dataclass
class Losses:
    """Of each text that has a token to predict: negative log-likelihood (nats, float64) and
    predicted tokens."""

    nll: np.ndarray
    tokens: np.ndarray
    bytes: int
    """Of the text that the predicted tokens stand for; 0 where they cannot be counted."""

    def metrics(self) -> dict[str, Measured]:
        """`token_metrics` of all tokens, and mean_text_perplexity = mean over texts of exp(nll /
        tokens).

        The latter is there to compare with published Pico numbers, and is dominated by outliers:
        one short or strange text of a huge perplexity outweighs all others.
        """
        metrics = token_metrics(float(self.nll.sum()), int(self.tokens.sum()), self.bytes)
        return metrics | _mean_perplexity("mean_text_perplexity", self.nll / self.tokens)


def texts_settings(sources: Sources, config: TextsConfig, window: int) -> dict[str, Any]:
    """What of the texts and of their reading decides a result: each source is read once, and
    hashed.

    Raises:
        UserError: a source cannot be read, or holds no text.
    """
    stated = {
        name: _digest(itertools.islice(read(), config.texts)) for name, read in sources.items()
    }
    return {
        "sources": stated,
        "seq_len": window,
        "windows": f"disjoint, {window} predicted tokens",
        "means": "over sources",  # results without it have a pooled mean_text_perplexity, and are not read back
    }


def text_perplexity(
    model: Decoder,
    sources: Sources,
    config: TextsConfig,
    encoder: TextEncoder,
    window: int,
    advance: Advance = ignore,
) -> dict[str, Measured]:
    """Perplexity on `sources` in windows of `window` predicted tokens.

    `NAME/SOURCE` for loss (mean over the tokens of the source, nats), perplexity (its exponential),
    bits_per_byte and mean_text_perplexity of each source; `NAME` is the macro mean, that is the
    mean over sources. pooled_text_perplexity is the mean of the perplexities of the texts of all
    sources, as in the published Pico numbers.

    Raises:
        UserError: a source cannot be read, or has no token to predict.
    """
    found = {}
    for name, read in sources.items():
        texts = itertools.islice(read(), config.texts)
        found[name] = _losses(
            model, _encoded(encoder, texts, name), config.batch_tokens, window, advance
        )
        if not found[name].tokens.size:
            raise UserError(f'the source "{name}" has no token to predict')
    return _summary(found)


def _digest(texts: Iterator[Document]) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    for document in texts:
        content = (
            document.encode() if isinstance(document, str) else document.astype("<i8").tobytes()
        )
        digest.update(f"{len(content)}\x1f".encode() + content)
        count += 1
    return {"texts": count, "sha256": digest.hexdigest()}


_Encoded = tuple[np.ndarray, int | None]
"""(ids, bytes of text that all but the first stand for)."""


def _encoded(encoder: TextEncoder, texts: Iterator[Document], source: str) -> Iterator[_Encoded]:
    for number, text in enumerate(texts, start=1):
        ids = encoder(text, f'text {number} of the source "{source}"')
        yield ids, encoder.predicted_bytes(text, ids)


def _losses(
    model: Decoder, sequences: Iterator[_Encoded], batch_tokens: int, window: int, advance: Advance
) -> Losses:
    nll: list[np.ndarray] = [np.zeros(0)]
    tokens: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    bytes_: list[int | None] = []
    for lot in _lots(sequences, _PASSES * batch_tokens):
        texts = [ids for ids, _ in lot]
        windows = [list(_windows(ids, window)) for ids in texts]
        owner = np.repeat(np.arange(len(texts)), [len(of) for of in windows])
        totals = sequence_nll(model, list(itertools.chain.from_iterable(windows)), batch_tokens)
        nll.append(np.bincount(owner, weights=totals, minlength=len(texts)))
        tokens.append(np.array([len(ids) - 1 for ids in texts], dtype=np.int64))
        bytes_ += [n_bytes for _, n_bytes in lot]
        advance(len(lot))
    known = [n_bytes for n_bytes in bytes_ if n_bytes is not None]
    return Losses(
        np.concatenate(nll), np.concatenate(tokens), sum(known) if len(known) == len(bytes_) else 0
    )


def _lots(sequences: Iterator[_Encoded], size: int) -> Iterator[list[_Encoded]]:
    """Sequences that predict something, in lists of about `size` tokens."""
    lot: list[_Encoded] = []
    tokens = 0
    for ids, n_bytes in sequences:
        if len(ids) < 2:
            continue
        lot.append((ids, n_bytes))
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
    for metric in ("loss", "perplexity", "bits_per_byte", "mean_text_perplexity"):
        of = [metrics_[metric] for metrics_ in by_source.values() if metric in metrics_]
        if len(of) == len(found):  # a mean over some of the sources would be another number
            metrics[metric] = Measured(
                value=float(np.mean([m.value for m in of])), unit=of[0].unit, n=sum(m.n for m in of)
            )
    every_text = np.concatenate([losses.nll / losses.tokens for losses in found.values()])
    metrics |= _mean_perplexity("pooled_text_perplexity", every_text)
    return metrics | {
        f"{metric}/{name}": m for name, of in by_source.items() for metric, m in of.items()
    }


def _mean_perplexity(name: str, losses: np.ndarray) -> dict[str, Measured]:
    """mean(exp(losses)), which its largest terms dominate; absent where float64 does not hold
    it."""
    if losses.max() >= LARGEST_LOSS:
        return {}
    value = float(np.mean(np.exp(losses)))
    return {name: Measured(value=value, unit="1", n=len(losses))} if math.isfinite(value) else {}
