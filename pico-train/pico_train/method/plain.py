"""Ordinary pretraining: next-token prediction, every parameter trains."""

from __future__ import annotations

import torch
from torch import nn

from pico_train.method.base import Method


class Plain(Method):
    """Next-token prediction over the language-model rows; everything else is the seam's default."""

    shardable = True

    def loss(
        self, model: nn.Module, batch: torch.Tensor | None, step: int
    ) -> tuple[torch.Tensor, int, dict[str, float]]:
        assert batch is not None  # begin_step asked for rows
        inputs, labels = batch[:, :-1], batch[:, 1:]
        return model(inputs, labels=labels), labels.numel(), {}
