"""The probe: the validation rows that every step is observed on, and the positions kept of them.

Every run on the same data has the same probe, so that runs can be compared.

Shapes: P probe rows, T positions a row predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from pico_train.config import Section
from pico_train.data.order import RowOrder
from pico_train.data.packed import PackedData
from pico_train.seeds import generator


class PositionsConfig(Section):
    """The positions of a probe row at which activations are kept."""

    rule: Literal["last", "mean", "all", "every", "sampled"] = "last"
    """last; mean over all; all; every k-th, ending with the last; k sampled ones, the same for
    every row."""
    k: int = Field(1, ge=1)
    """Stride of "every", number of "sampled"; not read otherwise."""


@dataclass(frozen=True)
class Probe:
    """The validation rows on which every step is observed."""

    row_ids: torch.Tensor  # (P,) int64
    tokens: torch.Tensor  # (P, T + 1) int64


def positions(config: PositionsConfig, seq_len: int, fingerprint: str) -> list[int]:
    """List the positions (0-based, ascending) to keep of rows of `seq_len`; [] is their mean."""
    if config.rule == "mean":
        return []
    if config.rule == "last":
        return [seq_len - 1]
    if config.rule == "all":
        return list(range(seq_len))
    if config.rule == "every":
        # Counting from the end keeps the last position, whose context is the longest.
        return sorted(range(seq_len - 1, -1, -config.k))
    # The seed is fixed: runs with different seeds must keep the same positions to be compared.
    drawn = torch.randperm(seq_len, generator=generator(0, "positions", fingerprint))[
        : config.k
    ]
    return sorted(drawn.tolist())


def choose_probe(data: PackedData, probe_rows: int, seq_len: int) -> Probe:
    """Draw at most `probe_rows` validation rows: a function of the data's fingerprint alone."""
    if "validation" not in data.manifest.splits:
        no_rows = torch.empty(0, dtype=torch.int64)
        return Probe(no_rows, torch.empty(0, seq_len + 1, dtype=torch.int64))
    rows = data.split("validation")
    count = min(probe_rows, rows.n_rows)
    order = RowOrder(
        n_rows=rows.n_rows,
        batch_size=count,
        fingerprint=data.manifest.fingerprint,
        seed=0,
        shuffle=True,
    )
    # The first batch of a shuffled order: rows from all over the validation split.
    row_ids = order.rows(1)
    tokens = rows.take(row_ids)[:, : seq_len + 1]
    return Probe(torch.from_numpy(row_ids), torch.from_numpy(tokens))
