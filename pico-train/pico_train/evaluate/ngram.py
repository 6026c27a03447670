"""N-gram models fitted on the training rows: the reference for a validation loss.

Shapes: N predicted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from pico_contract import codec
from pico_contract.layout import RunLayout
from pico_contract.schema import EvaluationManifest, Measurement

from pico_train.data.packed import PackedData, Rows

DISCOUNT = 0.75
"""The discount d of Kneser-Ney smoothing; Ney, Essen & Kneser (1994) estimate values near it."""
_BLOCK = 4096
"""Rows that are read at a time."""


def unigram_entropy(labels: np.ndarray) -> float:
    """Return -sum p ln p of the distribution of `labels`, in nats a token.

    No unigram model reaches a lower loss on them.
    """
    counts = np.unique(labels, return_counts=True)[1]
    p = counts / counts.sum()
    entropy = -(p * np.log(p)).sum()
    return float(entropy)


class Bigram:
    """Interpolated Kneser-Ney (Chen & Goodman 1999, equation 25) with a uniform last level.

    p(w | v) = max(c(v, w) - d, 0) / c(v) + d T(v) / c(v) * q(w), with T(v) the number of types that
    follow v and q(w) = (max(B(w) - d, 0) + d U / V) / B over the numbers B(w) of types that precede
    w, U of them not zero. After a v that was never seen, p(w | v) = q(w).
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, vocab_size: int) -> None:
        """Fit on pairs (first[i], second[i]), int64 (N,)."""
        self.vocab_size = vocab_size
        count_tokens = partial(np.bincount, minlength=vocab_size)
        pairs = self._pair_codes(first, second)
        self._codes, self._counts = np.unique(pairs, return_counts=True)  # c(v, w)
        history, word = np.divmod(self._codes, vocab_size)
        self._totals = count_tokens(history, weights=self._counts)  # (V,): c(v)
        self._followers = count_tokens(history)  # (V,): T(v)
        preceding = count_tokens(word)  # (V,): B(w)
        self._lower = self._continuation(preceding)  # (V,): q(w)

    def _pair_codes(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return each pair (v, w) as one number, int64 (N,)."""
        # Single numbers sort much faster than rows of two, and the square of any real
        # vocabulary fits into int64.
        return first * self.vocab_size + second

    def _continuation(self, preceding: np.ndarray) -> np.ndarray:
        """Return q(w) for the numbers B(w) of types that precede w, float64 (V,)."""
        discounted = np.maximum(preceding - DISCOUNT, 0.0)
        uniform = DISCOUNT * np.count_nonzero(preceding) / self.vocab_size
        return (discounted + uniform) / preceding.sum()

    def probability(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return p(second[i] | first[i]), float64 (N,)."""
        count = self._pair_counts(first, second)
        total = self._totals[first]
        is_seen = total > 0
        # After an unseen token the first term is 0 and q(w) has all the weight.
        divisor = np.where(is_seen, total, 1.0)
        discounted = np.maximum(count - DISCOUNT, 0.0)
        freed = DISCOUNT * self._followers[first]
        backoff = np.where(is_seen, freed / divisor, 1.0)
        lower = self._lower[second]
        return discounted / divisor + backoff * lower

    def _pair_counts(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return c(first[i], second[i]), (N,); 0 for a pair that was never seen."""
        pairs = self._pair_codes(first, second)
        # The codes are sorted; an unseen pair may fall behind the last one.
        index = np.searchsorted(self._codes, pairs).clip(max=len(self._codes) - 1)
        is_known = self._codes[index] == pairs
        return np.where(is_known, self._counts[index], 0)


def ngram_reference(data: PackedData) -> dict[str, Measurement]:
    """Measure unigram entropy and the losses of n-gram models on the validation rows.

    The models are fitted on the training rows. The labels are those that a model predicts: row[1:]
    given row[:-1] (nats a token, float64).
    """
    vocab_size = data.manifest.vocab_size
    train, validation = _pairs(data.split("train")), _pairs(data.split("validation"))
    # The first id of a row is never predicted.
    labels = validation[1]
    # Add one to every count, so that no token has probability zero.
    counts = np.bincount(train[1], minlength=vocab_size) + 1.0
    unigram_nll = -np.log(counts / counts.sum())[labels]
    bigram_nll = -np.log(Bigram(*train, vocab_size).probability(*validation))
    values = {
        "unigram_entropy": unigram_entropy(labels),
        "unigram_loss": float(unigram_nll.mean()),
        "bigram_loss": float(bigram_nll.mean()),
    }
    return {
        name: Measurement(value=value, unit="nats/token", n=len(labels))
        for name, value in values.items()
    }


def write_reference(data: PackedData, layout: RunLayout, run: str) -> dict[str, Measurement]:
    """Measure `ngram_reference` and write it beside the run's evaluations."""
    metrics = ngram_reference(data)
    settings = {
        "data": data.manifest.fingerprint,
        "start_token": "none; the first id of each row is context only",
        "smoothing": "interpolated Kneser-Ney",
        "discount": DISCOUNT,
    }
    result = EvaluationManifest(
        created=codec.utc_now(),
        run=run,
        step=0,
        task="ngram_reference",
        settings=settings,
        metrics=metrics,
    )
    codec.write_text(layout.reference, result.to_json())
    return metrics


def _pairs(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return (context, label) of every predicted token, int64 (N,) each."""
    ids = np.concatenate(list(_blocks(rows)))
    return ids[:, :-1].ravel(), ids[:, 1:].ravel()


def _blocks(rows: Rows) -> Iterator[np.ndarray]:
    for start in range(0, rows.n_rows, _BLOCK):
        stop = min(start + _BLOCK, rows.n_rows)
        yield rows.take(np.arange(start, stop))
