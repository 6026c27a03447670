"""Perplexity of a model on packed rows."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from pico_contract.schema import Measured
from pydantic import Field

from pico_train.config import Section
from pico_train.data.packed import Rows
from pico_train.errors import NonFiniteError
from pico_train.evaluate.progress import Advance, ignore
from pico_train.model.decoder import Decoder

LARGEST_LOSS = math.log(sys.float_info.max)
"""Of which float64 holds the exponential."""


DEFAULT_ROWS = 512
"""Validation rows that are read unless a configuration says otherwise: an evaluation while training
should cost a few percent of it, whatever the size of the split."""


class PerplexityConfig(Section):
    """Perplexity on the validation rows of the run's data."""

    rows: int | None = Field(DEFAULT_ROWS, ge=1)
    """How many rows, from the first; null is all. Results state the number."""
    batch_size: int = Field(16, ge=1)
    """Rows a forward pass; changes no result beyond rounding."""

    seq_len: int | None = Field(None, ge=1)
    """Tokens predicted in each row, from its first; null is the whole row, as far as the model has
    positions."""

    def settings(self, available: Rows, positions: int) -> dict[str, Any]:
        """What the result depends on, as the result file states it."""
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
) -> dict[str, Measured]:
    """`token_metrics` of `seq_len` tokens of the first `n_rows` rows, the sum of their losses taken
    in float64.

    Bytes are counted where `byte_lengths` (bytes of each vocabulary entry, 0 for special tokens) is
    known. `advance` is called with the rows of each forward pass.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    device = next(model.parameters()).device
    total, tokens, bytes_ = 0.0, 0, 0
    for start in range(0, n_rows, batch_size):
        ids = rows.take(np.arange(start, min(start + batch_size, n_rows)))[:, : seq_len + 1]
        batch = torch.from_numpy(ids).to(device)
        nll = model.token_nll(batch[:, :-1], batch[:, 1:])  # (rows, T)
        total += nll.cpu().double().sum().item()
        tokens += nll.numel()
        bytes_ += int(byte_lengths[ids[:, 1:]].sum()) if byte_lengths is not None else 0
        advance(len(ids))
    if not math.isfinite(total):
        raise NonFiniteError(
            f"the loss on the validation rows is {total}: the model's outputs are no longer finite"
        )
    return token_metrics(total, tokens, bytes_)


def token_metrics(nll: float, tokens: int, bytes_: int) -> dict[str, Measured]:
    """What follows from the summed negative log-likelihood (nats) of `tokens` tokens that stand for
    `bytes_` bytes.

    loss = nll / tokens, that is -ln p(token | text so far) a token; perplexity = exp(loss), absent
    where float64 does not hold it; bits_per_byte = nll / ln 2 / bytes_ over the bytes of the
    predicted tokens, absent where these are 0.
    """
    loss = nll / tokens
    result = {"loss": Measured(value=loss, unit="nats/token", n=tokens)}
    if loss < LARGEST_LOSS:
        result["perplexity"] = Measured(value=math.exp(loss), unit="1", n=tokens)
    if bytes_:
        result["bits_per_byte"] = Measured(
            value=nll / math.log(2) / bytes_, unit="bits/byte", n=bytes_
        )
    return result
