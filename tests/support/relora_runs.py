"""A low-rank run by hand: its updates one by one, and what it is between them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pico_contract import codec
from pico_contract.layout import MODEL_WEIGHTS
from pico_train.checkpoint.state import TrainState
from pico_train.run import Job, RunConfig, build
from pico_train.schedule import lr_factor
from pico_train.trainer.update import apply_update, compute_gradients


def updates(job: Job, state: TrainState, count: int) -> Iterator[int]:
    """Train `count` updates, giving the number of each after it."""
    for step in range(state.counters.step + 1, state.counters.step + count + 1):
        update = compute_gradients(job, state, step)
        apply_update(state, update, lr_factor(job.config.schedule, step, job.config.train.steps))
        yield step


def begun(config: RunConfig) -> tuple[Job, TrainState]:
    job = build(config)
    return job, job.build_state(None)


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.method.effective_weights(state.model)}


def loss(job: Job, state: TrainState) -> float:
    """Of the next update's rows, dropout off."""
    with torch.no_grad():
        rows = job.loader.tokens(job.loader.order.rows(state.counters.reads + 1))
        return float(state.plain_decoder()(rows[:, :-1], labels=rows[:, 1:])) / rows[:, 1:].numel()


def saved(config: RunConfig, step: int) -> dict[str, torch.Tensor]:
    return codec.read_tensors(config.layout.checkpoint(step) / MODEL_WEIGHTS)
