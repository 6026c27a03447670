"""Ordinary pretraining: next-token prediction in which every parameter trains."""

from __future__ import annotations

import torch
from torch import nn

from pico_train.method.base import Method


class Plain(Method):
    """Next-token prediction on language-model rows, with every other hook at its default."""

    shardable = True

    def loss(
        self, model: nn.Module, batch: torch.Tensor | None, step: int
    ) -> tuple[torch.Tensor, int, dict[str, float]]:
        assert batch is not None  # the default begin_step asks for rows
        inputs, labels = batch[:, :-1], batch[:, 1:]
        return model(inputs, labels=labels), labels.numel(), {}
