"""The seam along which training varies: one object, few hooks, each with a default that does
nothing special."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from pico_train.config import Section
from pico_train.model.decoder import Decoder
from pico_train.schedule import ScheduleConfig

BatchSource = Literal["language_model"] | torch.Tensor | None
"""What one update reads: the next language-model rows, rows of the method's own (first dimension:
rows), or none."""


class Method:
    """How a model is trained. Subclasses override what differs; `loss` alone is required.

    Life of a method: constructed from its options; on resume or rebuild `load_state_dict` comes
    first; then `prepare`, once, which returns what trains. The loop then calls, for update t:
    `begin_step(t)`, `loss` for every micro-batch, `after_step`. It holds no generator: draws come
    from `seeds.generator(seed, purpose, step)`.
    """

    Config: type[Section] = Section
    """Options of the method, read from `method.options`."""

    objective = "mean next-token negative log-likelihood, nats"
    """What the train gradients in snapshots are gradients of."""
    shardable = False
    """Whether it trains under `train.sharding: full`: its loss is of `model(...)`, outside of which
    parameters are shares (DTensor), and what trains are parameters of the model."""
    low_rank = False
    """Whether it may give modules low-rank factors, named as in CONTRACT.md, section 4, among its
    extra tensors."""
    dropout = False
    """Whether the objective is stochastic through dropout."""

    def __init__(self, config: Section) -> None:
        self.config = config

    def check(self, schedule: ScheduleConfig, steps: int) -> None:
        """UserError where the method's options contradict the learning rate's schedule or the
        number of updates."""

    def prepare(self, model: Decoder, data: Any, seed: int) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that trains, before the optimizer exists.

        May add a head or wrap layers. `model` holds the effective weights of the step that training
        starts from; `data` is the run's `PackedData`; `seed` is `seed.method`. State given to
        `load_state_dict` wins over both. Another instance may be asked beforehand, with a model of
        shapes alone, for what the run will take.
        """
        return dict(model.named_parameters())

    def begin_step(self, step: int) -> BatchSource:
        """What update `step` reads. Rows of its own do not advance the language-model order."""
        return "language_model"

    def loss(
        self, model: nn.Module, batch: torch.Tensor | None, step: int
    ) -> tuple[torch.Tensor, int, dict[str, float]]:
        """(loss summed over the micro-batch, how many terms it sums, scalars for the log).

        `batch` is a micro-batch (rows, seq_len + 1) of token ids, int64, or of the method's own
        rows, or None. The loop divides by the number of terms of the global batch, so that
        micro-batches do not change gradients. Scalars are averaged over the micro-batches, weighted
        by their terms.
        """
        raise NotImplementedError

    def acts_after(self, step: int) -> bool:
        """Whether `after_step` does anything at `step`: before that the loop makes sure that the
        update was finite."""
        return type(self).after_step is not Method.after_step

    def after_step(self, model: Decoder, optimizer: torch.optim.Optimizer, step: int) -> None:
        """After update `step`: merges, restarts. Changes parameters in place only."""

    def effective_weights(self, model: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, tensor) of the plain decoder that computes the same function: what
        checkpoints hold and probes see."""
        yield from model.named_parameters()

    def extra_tensors(self, model: Decoder) -> dict[str, torch.Tensor]:
        """Further tensors for the weights of a snapshot, such as low-rank factors."""
        return {}

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """(tensors, JSON scalars) that continuing needs beyond the effective weights and the
        optimizer."""
        return {}, {}

    def load_state_dict(
        self, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]
    ) -> None:
        """Take back what `state_dict` gave; called before `prepare`, which builds from it."""

    def rebuild_at(self, step: int) -> bool:
        """Whether, after update `step`, what trains changes, so that the loop must build model,
        method and optimizer anew from the state, exactly as on resume."""
        return False
