"""Perplexity of a model on packed rows."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from pico_contract.schema import Measurement
from pydantic import Field

from pico_train.config import Section
from pico_train.data.packed import Rows
from pico_train.errors import NonFiniteError
from pico_train.evaluate.progress import Advance, ignore
from pico_train.model.decoder import Decoder

LARGEST_LOSS = math.log(sys.float_info.max)
"""The largest loss whose exponential float64 can hold."""


DEFAULT_ROWS = 512
"""Validation rows that are read by default.
An evaluation while training should cost a few percent of it, whatever the size of the split."""


class PerplexityConfig(Section):
    """Perplexity on the validation rows of the run's data."""

    rows: int | None = Field(DEFAULT_ROWS, ge=1)
    """Rows to read, from the first; null is all. Results state the number."""
    batch_size: int = Field(16, ge=1)
    """Rows a forward pass; changes no result beyond rounding."""

    seq_len: int | None = Field(None, ge=1)
    """Tokens to predict in each row, from its first; null is the whole row.
    The model's positions are the upper bound."""

    def settings(self, available: Rows, positions: int) -> dict[str, Any]:
        """Return everything that decides the result, as the result file states it."""
        return {
            "split": "validation",
            "rows": min(self.rows or available.n_rows, available.n_rows),
            "seq_len": min(self.seq_len or available.seq_len, available.seq_len, positions),
            "start_token": "none; the first id of each row is context only",
        }


@torch.no_grad()
def perplexity(
    model: Decoder,
    rows: Rows,
    n_rows: int,
    seq_len: int,
    batch_size: int,
    byte_lengths: np.ndarray | None,
    advance: Advance = ignore,
) -> dict[str, Measurement]:
    """Measure `token_metrics` on `seq_len` tokens of each of the first `n_rows` rows.

    Losses are summed in float64. Bytes are counted if `byte_lengths` (bytes of each vocabulary
    entry, 0 for special tokens) is known. `advance` is called with the rows of each forward pass.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    device = next(model.parameters()).device
    total, tokens, n_bytes = 0.0, 0, 0
    for start in range(0, n_rows, batch_size):
        row_ids = np.arange(start, min(start + batch_size, n_rows))
        ids = rows.take(row_ids)[:, : seq_len + 1]
        batch = torch.from_numpy(ids).to(device)
        nll = model.token_nll(batch[:, :-1], batch[:, 1:])  # (rows, T)
        # Float32 sums over millions of tokens would lose digits.
        total += nll.cpu().double().sum().item()
        tokens += nll.numel()
        if byte_lengths is not None:
            n_bytes += int(byte_lengths[ids[:, 1:]].sum())
        advance(len(ids))
    # One check at the end: a loss that is not finite stays so in the sum.
    if not math.isfinite(total):
        raise NonFiniteError(
            f"the loss on the validation rows is {total}: the model's outputs are no longer finite"
        )
    return token_metrics(total, tokens, n_bytes)


def token_metrics(nll: float, tokens: int, n_bytes: int) -> dict[str, Measurement]:
    """Derive the metrics from a summed negative log-likelihood in nats.

    `tokens` is the number of predicted tokens, `n_bytes` the bytes of text that they stand for.
    loss = nll / tokens, that is -ln p(token | text so far) a token; perplexity = exp(loss), absent
    if float64 cannot hold it; bits_per_byte = nll / ln 2 / n_bytes, absent if n_bytes is 0.
    """
    loss = nll / tokens
    result = {"loss": Measurement(value=loss, unit="nats/token", n=tokens)}
    if loss < LARGEST_LOSS:
        perplexity = math.exp(loss)
        result["perplexity"] = Measurement(value=perplexity, unit="1", n=tokens)
    if n_bytes:
        bits_per_byte = nll / math.log(2) / n_bytes
        result["bits_per_byte"] = Measurement(value=bits_per_byte, unit="bits/byte", n=n_bytes)
    return result
