"""What n-gram models fitted on the same rows reach: the reference beside which a validation loss is
read.

Shapes: N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import numpy as np
from pico_contract import codec
from pico_contract.layout import RunLayout
from pico_contract.schema import EvaluationManifest, Measured

from pico_train.data.packed import PackedData, Rows

DISCOUNT = 0.75
"""Of Kneser-Ney smoothing; Ney, Essen & Kneser (1994) estimate values near it."""
_BLOCK = 4096


def unigram_entropy(labels: np.ndarray) -> float:
    """-sum p ln p of the empirical distribution of `labels`, nats a token: what no unigram model
    can beat on them."""
    counts = np.unique(labels, return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


class Bigram:
    """Interpolated Kneser-Ney (Chen & Goodman 1999, equation 25), discounted once more towards the
    uniform.

    p(w | v) = max(c(v, w) - d, 0) / c(v) + d T(v) / c(v) * q(w), with T(v) the number of types that
    follow v and q(w) = (max(B(w) - d, 0) + d U / V) / B over the numbers B(w) of types that precede
    w, U of them not zero. After a v that was never seen, p(w | v) = q(w).
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, vocab_size: int) -> None:
        """Fit on pairs (first[i], second[i]), int64 (N,)."""
        self.vocab_size = vocab_size
        self._codes, self._counts = np.unique(first * vocab_size + second, return_counts=True)
        history, word = np.divmod(self._codes, vocab_size)
        self._totals = np.bincount(history, weights=self._counts, minlength=vocab_size)
        self._followers = np.bincount(history, minlength=vocab_size)
        before = np.bincount(word, minlength=vocab_size)
        spared = DISCOUNT * np.count_nonzero(before) / vocab_size
        self._lower = (np.maximum(before - DISCOUNT, 0.0) + spared) / before.sum()

    def probability(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """p(second[i] | first[i]), float64 (N,)."""
        code = first * self.vocab_size + second
        place = np.searchsorted(self._codes, code).clip(max=len(self._codes) - 1)
        count = np.where(self._codes[place] == code, self._counts[place], 0)
        total = self._totals[first]
        seen = total > 0
        safe = np.where(seen, total, 1.0)
        backoff = np.where(seen, DISCOUNT * self._followers[first] / safe, 1.0)
        return np.maximum(count - DISCOUNT, 0.0) / safe + backoff * self._lower[second]


def ngram_reference(data: PackedData) -> dict[str, Measured]:
    """Unigram entropy of the validation labels, and the loss on them of unigram and bigram models
    fitted on train.

    The labels are those that a model predicts: row[1:] given row[:-1] (nats a token, float64).
    """
    vocab_size = data.manifest.vocab_size
    train, validation = _pairs(data.split("train")), _pairs(data.split("validation"))
    counts = (
        np.bincount(train[1], minlength=vocab_size) + 1.0
    )  # add-one: nothing has probability zero
    unigram = -np.log(counts / counts.sum())[validation[1]].mean()
    bigram = -np.log(Bigram(*train, vocab_size).probability(*validation)).mean()
    values = {
        "unigram_entropy": unigram_entropy(validation[1]),
        "unigram_loss": float(unigram),
        "bigram_loss": float(bigram),
    }
    return {
        name: Measured(value=value, unit="nats/token", n=len(validation[1]))
        for name, value in values.items()
    }


def write_reference(data: PackedData, layout: RunLayout, run: str) -> dict[str, Measured]:
    """`ngram_reference`, also written beside the run's evaluations."""
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
    """(context, label) of every predicted token, int64 (N,) each."""
    blocks = [
        rows.take(np.arange(start, min(start + _BLOCK, rows.n_rows)))
        for start in range(0, rows.n_rows, _BLOCK)
    ]
    ids = np.concatenate(blocks)
    return ids[:, :-1].ravel(), ids[:, 1:].ravel()
