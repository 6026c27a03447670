"""Methods that go wrong at update 6."""

from __future__ import annotations

import torch
from pico_train.method.plain import Plain
from torch import nn


class BadLoss(Plain):
    """Not finite at update 6 alone."""

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        total, terms, scalars = super().loss(model, batch, step)
        return total * (float("nan") if step == 6 else 1.0), terms, scalars


class BadGradient(Plain):
    """A finite loss whose gradient is infinite at update 6: d sqrt(x) / dx at 0."""

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, int, dict[str, float]]:
        total, terms, scalars = super().loss(model, batch, step)
        return total + (model.model.norm.weight.sum() * 0.0).sqrt() if step == 6 else total, terms, scalars
