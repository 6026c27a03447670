"""Perplexity on named sources of text of any length.

A text longer than a window of T predicted tokens is read in disjoint windows. Each begins at the
token before its first predicted one, so that every token is predicted exactly once. The end of a
text is not predicted.
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
from pico_contract.schema import Measurement
from pydantic import Field

from pico_train.config import Section
from pico_train.data.sources import Document, SourceConfig, documents
from pico_train.evaluate.likelihood import StartToken, TextEncoder, sequence_nll
from pico_train.evaluate.perplexity import LARGEST_LOSS, token_metrics
from pico_train.evaluate.progress import Advance, ignore
from pico_train.model.decoder import Decoder

_PASSES = 16
"""Forward passes whose windows are sorted by length together."""


_METRICS = ("loss", "perplexity", "bits_per_byte", "mean_text_perplexity")
"""Metrics of a source whose means over sources are reported."""

Sources = Mapping[str, Callable[[], Iterator[Document]]]
"""Name of a source -> a function that reads its documents from the first."""


class TextsConfig(Section):
    """Options of reading texts, shared by all tasks on text."""

    texts: int | None = Field(None, ge=1)
    """Number of texts to read of each source, from its first; null is all."""
    seq_len: int | None = Field(None, ge=1)
    """Tokens that a window of a text predicts; null is as many as training reads.
    The model's positions are the upper bound."""
    start_token: StartToken = "eos"
    """Token before each text: end-of-text, or "none", which leaves out the first token."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens a forward pass; changes no result beyond rounding."""


class TextPerplexityConfig(TextsConfig):
    """Perplexity on texts, by source."""

    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    """Name -> a path, or a source with its field, separator, split and subset; empty is off."""

    def reading(self) -> Sources:
        """Return the configured sources, ready to read.

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
    """Losses of the texts of a source, one entry for each text with a token to predict."""

    nll: np.ndarray
    """Negative log-likelihood of each text (nats, float64)."""
    tokens: np.ndarray
    """Predicted tokens of each text."""
    bytes: int
    """Bytes of text that all predicted tokens stand for; 0 if they cannot be counted."""

    def metrics(self) -> dict[str, Measurement]:
        """Return `token_metrics` of all tokens and mean_text_perplexity.

        mean_text_perplexity is the mean over texts of exp(nll / tokens). It is there to compare
        with published Pico numbers. Outliers dominate it: one short or strange text of a huge
        perplexity outweighs all others.
        """
        total_nll = float(self.nll.sum())
        n_tokens = int(self.tokens.sum())
        text_losses = self.nll / self.tokens
        metrics = token_metrics(total_nll, n_tokens, self.bytes)
        return metrics | _mean_perplexity("mean_text_perplexity", text_losses)


def texts_settings(sources: Sources, config: TextsConfig, window: int) -> dict[str, Any]:
    """Return everything about the texts that decides a result; reads and hashes each source.

    Raises:
        UserError: a source cannot be read, or holds no text.
    """
    digests = {
        name: _digest(itertools.islice(read(), config.texts)) for name, read in sources.items()
    }
    return {
        "sources": digests,
        "seq_len": window,
        "windows": f"disjoint, {window} predicted tokens",
        # Results without this entry have a pooled mean_text_perplexity, and are not read back.
        "means": "over sources",
    }


def text_perplexity(
    model: Decoder,
    sources: Sources,
    config: TextsConfig,
    encoder: TextEncoder,
    window: int,
    advance: Advance = ignore,
) -> dict[str, Measurement]:
    """Measure perplexity on `sources` in windows of `window` predicted tokens.

    `METRIC/SOURCE` is the loss (mean over the tokens of the source, nats), perplexity (its
    exponential), bits_per_byte and mean_text_perplexity of each source; `METRIC` is the macro mean,
    that is the mean over sources. pooled_text_perplexity is the mean of the perplexities of the
    texts of all sources, as in the published Pico numbers.

    Raises:
        UserError: a source cannot be read, or has no token to predict.
    """
    losses = {}
    for name, read in sources.items():
        texts = itertools.islice(read(), config.texts)
        encoded = _encoded(encoder, texts, name)
        losses[name] = _losses(model, encoded, config.batch_tokens, window, advance)
        if not losses[name].tokens.size:
            raise UserError(f'the source "{name}" has no token to predict')
    return _summary(losses)


def _digest(texts: Iterator[Document]) -> dict[str, Any]:
    """Count and hash the texts."""
    digest, count = hashlib.sha256(), 0
    for text in texts:
        # One width and byte order, so that the hash does not depend on how the ids were stored.
        content = text.encode() if isinstance(text, str) else text.astype("<i8").tobytes()
        # The length in front keeps apart texts that are equal only when joined.
        digest.update(f"{len(content)}\x1f".encode() + content)
        count += 1
    return {"texts": count, "sha256": digest.hexdigest()}


_Encoded = tuple[np.ndarray, int | None]
"""(ids, bytes of text that all ids but the first stand for, None if unknown)."""


def _encoded(
    encoder: TextEncoder, texts: Iterator[Document], source: str
) -> Iterator[_Encoded]:
    for number, text in enumerate(texts, start=1):
        ids = encoder(text, f'text {number} of the source "{source}"')
        yield ids, encoder.predicted_bytes(text, ids)


def _losses(
    model: Decoder,
    sequences: Iterator[_Encoded],
    batch_tokens: int,
    window: int,
    advance: Advance,
) -> Losses:
    nll: list[float] = []
    n_tokens: list[int] = []
    n_bytes: list[int | None] = []
    for lot in _lots(sequences, _PASSES * batch_tokens):
        texts = [ids for ids, _ in lot]
        nll.extend(_text_nll(model, texts, batch_tokens, window))
        n_tokens.extend(len(ids) - 1 for ids in texts)
        n_bytes.extend(count for _, count in lot)
        advance(len(lot))
    # A sum over only some of the texts would be another number.
    total_bytes = 0 if None in n_bytes else sum(filter(None, n_bytes))
    return Losses(
        nll=np.array(nll, dtype=np.float64),
        tokens=np.array(n_tokens, dtype=np.int64),
        bytes=total_bytes,
    )


def _text_nll(
    model: Decoder, texts: list[np.ndarray], batch_tokens: int, window: int
) -> np.ndarray:
    """Return the negative log-likelihood of each text, summed over its windows."""
    windows: list[np.ndarray] = []
    owners: list[int] = []
    for number, ids in enumerate(texts):
        for window_ids in _windows(ids, window):
            windows.append(window_ids)
            owners.append(number)
    totals = sequence_nll(model, windows, batch_tokens)
    return np.bincount(owners, weights=totals, minlength=len(texts))


def _lots(sequences: Iterator[_Encoded], size: int) -> Iterator[list[_Encoded]]:
    """Group sequences that predict something into lists of about `size` tokens."""
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
        # One id more: the last token before the window is its context.
        yield ids[start : start + size + 1]


def _summary(losses: dict[str, Losses]) -> dict[str, Measurement]:
    """Return the means over sources, the pooled mean, and the metrics of each source."""
    by_source = {name: source.metrics() for name, source in losses.items()}
    metrics = _macro_means(list(by_source.values())) | _pooled(list(losses.values()))
    for name, results in by_source.items():
        for metric, result in results.items():
            metrics[f"{metric}/{name}"] = result
    return metrics


def _pooled(sources: list[Losses]) -> dict[str, Measurement]:
    text_losses = [source.nll / source.tokens for source in sources]
    return _mean_perplexity("pooled_text_perplexity", np.concatenate(text_losses))


def _macro_means(sources: list[dict[str, Measurement]]) -> dict[str, Measurement]:
    """Return the means over sources; n counts what all sources count together."""
    means = {}
    for metric in _METRICS:
        measured = [results[metric] for results in sources if metric in results]
        # A mean over only some of the sources would be another number.
        if len(measured) < len(sources):
            continue
        mean = float(np.mean([result.value for result in measured]))
        count = sum(result.n for result in measured)
        means[metric] = Measurement(value=mean, unit=measured[0].unit, n=count)
    return means


def _mean_perplexity(name: str, losses: np.ndarray) -> dict[str, Measurement]:
    """Return mean(exp(losses)) as metric `name`, or nothing if float64 cannot hold it."""
    if losses.max() >= LARGEST_LOSS:
        return {}
    value = float(np.mean(np.exp(losses)))
    # The sum may overflow even if each term fits.
    if not math.isfinite(value):
        return {}
    return {name: Measurement(value=value, unit="1", n=len(losses))}
