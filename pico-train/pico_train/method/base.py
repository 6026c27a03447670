"""The seam along which training varies: one object with few hooks, most of them with a default.

A method of your own is a subclass of `Method` in any module that can be imported; a configuration
names it as `method.name: module:attribute`. `plain.py` is the shortest example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from pico_train.config import Section
from pico_train.model.decoder import Decoder
from pico_train.schedule import ScheduleConfig

BatchSource = Literal["language_model"] | torch.Tensor | None
"""The rows that one update reads: language-model rows, the method's own rows, or None.
The first dimension of a tensor counts rows; the loop splits it into micro-batches."""


class Method:
    """A training method. Subclasses override the hooks that differ; only `loss` is required.

    The loop calls a method in this order:

    1. the constructor, with the validated options;
    2. `load_state_dict`, only on resume or rebuild;
    3. `prepare`, once: it returns the parameters that train;
    4. for each update t: `begin_step(t)`, `loss` once per micro-batch, `after_step(t)`,
       `rebuild_at(t)`. If `rebuild_at` is true, a new instance starts again at 1. To examine an
       update that was not finite, `begin_step` and `loss` are called once more for the same t.

    A method keeps no random generator. It draws from `seeds.generator(seed, purpose, step)`, so
    that a resumed run draws the same numbers.
    """

    Config: type[Section] = Section
    """The schema of `method.options`."""

    objective = "mean next-token negative log-likelihood, nats"
    """The quantity whose gradients a snapshot stores as train gradients."""
    shardable = False
    """Whether the method trains under `train.sharding: full`.
    Parameters are then sharded (DTensor) outside of `model(...)`: the loss must come from that
    call, and everything that trains must be a parameter of the model."""
    low_rank = False
    """Whether `extra_tensors` may hold low-rank factors, named as CONTRACT.md section 4 says."""
    dropout = False
    """Whether the objective is stochastic through dropout."""

    def __init__(self, config: Section) -> None:
        self.config = config

    def check(self, schedule: ScheduleConfig, steps: int) -> None:
        """Check the options against the learning rate schedule and the number of updates.

        Raises:
            UserError: they contradict each other.
        """

    def prepare(self, model: Decoder, data: Any, seed: int) -> dict[str, nn.Parameter]:
        """Return every parameter that trains, by name, before the optimizer exists.

        It may add a head or wrap layers. `model` holds the effective weights of the step from
        which training starts; `data` is the run's `PackedData`; `seed` is `seed.method`. State
        that was given to `load_state_dict` takes precedence over both. A dry run calls it on
        another instance, with a model on the meta device, to estimate what the run will take.
        """
        return dict(model.named_parameters())

    def begin_step(self, step: int) -> BatchSource:
        """Return what update `step` reads.

        Rows of the method's own do not advance the order of the language-model rows.
        """
        return "language_model"

    def loss(
        self, model: nn.Module, batch: torch.Tensor | None, step: int
    ) -> tuple[torch.Tensor, int, dict[str, float]]:
        """Return (loss summed over the micro-batch, number of summed terms, scalars to log).

        `batch` is one micro-batch of what `begin_step` asked for: language-model rows are int64
        token ids (rows, seq_len + 1). The loop divides by the number of terms in the global
        batch, so the micro-batch size does not change gradients. Each scalar is a mean over the
        terms; the log averages them over micro-batches, weighted by their terms.
        """
        raise NotImplementedError

    def acts_after(self, step: int) -> bool:
        """Return whether `after_step` does anything at `step`.

        The loop then first makes sure that the update was finite.
        """
        return type(self).after_step is not Method.after_step

    def after_step(self, model: Decoder, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Change parameters in place after update `step`, for example merge and restart."""

    def effective_weights(self, model: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (Hugging Face name, tensor) of the plain decoder that computes the same function.

        Checkpoints store these weights and probes run on them.
        """
        yield from model.named_parameters()

    def extra_tensors(self, model: Decoder) -> dict[str, torch.Tensor]:
        """Return further tensors for the weights of a snapshot, such as low-rank factors."""
        return {}

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return (tensors, JSON values) that a resume needs beyond weights and optimizer."""
        return {}, {}

    def load_state_dict(
        self, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]
    ) -> None:
        """Take back what `state_dict` returned. The loop calls this before `prepare`."""

    def rebuild_at(self, step: int) -> bool:
        """Return whether the set of trained parameters changes after update `step`.

        The loop then builds model, method and optimizer anew from the state, exactly as on resume.
        """
        return False
