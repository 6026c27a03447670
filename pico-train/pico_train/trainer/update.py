"""One update: its gradient over all micro-batches and processes, and the step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pico_train.checkpoint.state import Counters, TrainState
from pico_train.data.order import chain_hash
from pico_train.distributed import Runtime
from pico_train.observe.snapshot import Observing
from pico_train.optim import set_learning_rates
from pico_train.run.compile import compile_errors_as_user_errors
from pico_train.run.job import Job


@dataclass
class Update:
    """One update whose gradient, before clipping, lies in the parameters' `.grad`.

    `loss` and `norm` are NaN until the host has read them from the device.
    """

    step: int
    before: Counters
    """The counters of theta_(step - 1)."""
    job: Job
    loss: float = math.nan
    norm: float = math.nan
    n_tokens: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    row_ids: np.ndarray | None = None
    """(batch,) int64; None if the method read no language-model rows."""
    losses: torch.Tensor | None = None
    """(micro-batches,) loss sums of this process, on the device."""
    scale: float = 1.0
    """One over the number of terms in all processes."""
    norm_on_device: torch.Tensor | None = None

    @property
    def finite(self) -> bool:
        """Whether the loss and the gradient are finite, once both are read."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)

    def batch(self) -> dict[str, torch.Tensor]:
        """Read the rows of all processes again, as they are stored; {} if the method read none."""
        if self.row_ids is None:
            return {}
        tokens = self.job.loader.tokens(self.row_ids).int()
        return {"rows": torch.from_numpy(self.row_ids), "tokens": tokens}


def read_losses(updates: Sequence[Update], runtime: Runtime) -> None:
    """Wait for the device, and set the mean loss over all processes in each of `updates`."""
    if not updates:
        return
    # fsum rounds only once, however many micro-batches there are.
    sums = [
        math.fsum(update.losses.tolist()) for update in updates if update.losses is not None
    ]
    for update, total in zip(updates, runtime.sums(sums), strict=True):
        update.loss = total * update.scale


def compute_gradients(
    job: Job,
    state: TrainState,
    step: int,
    observing: Observing | None = None,
    *,
    defer: bool = False,
) -> Update:
    """Compute the gradient of update `step`: of the mean loss over the terms of the whole batch.

    It depends neither on the micro-batch nor on the number of processes. Each gives sums, and one
    division at the end is by the number of terms of them all: if these numbers differ, the mean of
    means is another objective. `observing` sees the gradient of each micro-batch of this process;
    `defer` leaves the loss on the device, for `read_losses`.
    """
    observing = observing or Observing()
    update = Update(step, replace(state.counters), job)
    batch, replicas = _read(job, state, update)
    parts = [None] if batch is None else batch.split(job.micro_batch)
    losses = []  # on the device: reading one would wait for every micro-batch
    own_tokens = 0
    sums: dict[str, float] = {}
    for part in parts:
        on_device = None if part is None else part.to(job.runtime.device, non_blocking=True)
        with compile_errors_as_user_errors():
            with job.runtime.autocast(job.precision):
                loss_sum, n_tokens, scalars = state.method.loss(state.model, on_device, step)
            # Outside of autocast, as torch advises: backward uses the dtypes of forward.
            loss_sum.backward()
        observing.take_pass(n_tokens, len(parts))
        losses.append(loss_sum.detach())
        own_tokens += n_tokens
        for name, value in scalars.items():
            # Weighted by terms, so that the division below gives the mean over the whole batch.
            sums[name] = sums.get(name, 0.0) + value * n_tokens
    observing.end_passes()
    job.runtime.sum_gradients(state.parameters)
    all_tokens, *totals = job.runtime.sums([own_tokens, *sums.values()])
    scale = 1.0 / max(all_tokens, 1)  # a batch may consist of ignored tokens alone
    torch._foreach_mul_(
        [p.grad for p in state.parameters.values() if p.grad is not None], scale
    )
    update.losses, update.scale = torch.stack(losses), scale
    # Where several processes computed the same, each term is in the sum that many times.
    update.n_tokens = round(all_tokens) // replicas
    if not defer:
        read_losses([update], job.runtime)
    update.scalars = {name: total * scale for name, total in zip(sums, totals, strict=True)}
    return update


def _read(job: Job, state: TrainState, update: Update) -> tuple[torch.Tensor | None, int]:
    """Return this process's part of the batch, and how many processes compute the same part."""
    # A method brings its own rows, needs none, or takes the next ones in the data's order.
    reads = state.method.begin_step(update.step)
    if reads is None or isinstance(reads, torch.Tensor):
        return job.runtime.share(reads)
    batch = job.loader.batch(state.counters.reads + 1)
    update.row_ids = batch.row_ids
    return batch.tokens, batch.replicas


def apply_update(state: TrainState, update: Update, factor: float) -> None:
    """Step the optimizer at `factor` times its peak rates, count, and let the method act."""
    set_learning_rates(state.optimizer, factor)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)  # frees the memory until the next update
    counters = state.counters
    counters.step = update.step
    counters.tokens += update.n_tokens
    if update.row_ids is not None:
        counters.reads += 1
        counters.order_hash = chain_hash(counters.order_hash, update.row_ids)
    state.method.after_step(state.model, state.optimizer, update.step)
