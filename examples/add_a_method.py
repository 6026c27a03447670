"""A method of your own: cross-entropy with z-loss, a penalty on (log Z)^2 (PaLM, arXiv 2204.02311, section 5).

Name it in the YAML of a run that you start beside this file:

    method: {name: "add_a_method:ZLoss", options: {coefficient: 1.0e-4}}
    train: {micro_batch_size: 8}  # all logits of a micro-batch are in memory at once
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pico_train.config import Section
from pico_train.method.base import Method


class ZLossConfig(Section):
    """Options of `ZLoss`."""

    coefficient: float = 1e-4
    """Weight of the penalty."""


class ZLoss(Method):
    """Next-token prediction with a penalty on the squared log of the softmax's normaliser."""

    Config = ZLossConfig
    objective = "mean next-token negative log-likelihood plus coefficient * (log Z)^2, nats"
    shardable = True

    def loss(self, model, batch, step):
        """Sum cross-entropy and penalty over the tokens; the mean of the penalty is logged."""
        inputs, labels = batch[:, :-1], batch[:, 1:]
        logits = model(inputs).float()  # (rows, tokens, vocabulary)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        penalty = self.config.coefficient * torch.logsumexp(logits, dim=-1).square().sum()
        return cross_entropy + penalty, labels.numel(), {"z_loss": penalty.item() / labels.numel()}
