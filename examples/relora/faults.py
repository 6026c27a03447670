"""Signatures of the three faults of the published code and of the arm without them, from one short run each, measured
at every update."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from pico_train.checkpoint.state import TrainState
from pico_train.run import Job, RunConfig, build
from pico_train.schedule import lr_factor
from pico_train.trainer.update import apply_update, compute_gradients

ARMS = ("relora", "fault_merge", "fault_init", "fault_reset")
EVERY, UPDATES = 150, 320
"""A restart after so many updates, of so many."""
OVERRIDES = [
    f"method.options.restart_every={EVERY}",
    f"train.steps={UPDATES}",
    "schedule.name=constant",
    "schedule.warmup_steps=20",
    "schedule.restart_every=0",
    "schedule.restart_warmup_steps=0",
    "optimizer.weight_decay=0",
]
"""A constant rate without warm-ups after restarts, which would hide what follows one."""


def signatures(configs: Mapping[str, RunConfig]) -> pd.DataFrame:
    """arm, step, and of theta_step: `loss` on rows that stay the same, nats; `moved`, |W - W_0|_F over all low-rank
    modules; `first`, the largest move of an entry of a factor in the update, in learning rates."""
    return pd.concat([_watch(config).assign(arm=arm) for arm, config in configs.items()], ignore_index=True)


def _watch(config: RunConfig) -> pd.DataFrame:
    job = build(config)
    state = job.build_state(None)
    start = {name: layer.effective() for name, layer in state.method.layers.items()}  # type: ignore[attr-defined]
    rows, moves = [], _Moves(state)
    for step in range(1, config.train.steps + 1):
        moves.begin()
        update = compute_gradients(job, state, step)
        apply_update(state, update, lr_factor(config.schedule, step, config.train.steps))
        moved = sum(
            float((layer.effective() - start[name]).square().sum())
            for name, layer in state.method.layers.items()  # type: ignore[attr-defined]
        )
        rows.append({"step": step, "loss": _loss(job, state), "moved": moved**0.5, "first": moves.largest})
    return pd.DataFrame(rows)


class _Moves:
    """How far the optimizer moves factors in one step; read right after it, before a restart draws them anew."""

    def __init__(self, state: TrainState) -> None:
        self.factors = [p for name, p in state.parameters.items() if "lora_" in name]
        self.before: list[torch.Tensor] = []
        self.largest = 0.0
        state.optimizer.register_step_post_hook(self._after)

    def begin(self) -> None:
        self.before = [p.detach().clone() for p in self.factors]

    def _after(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        moves = [(p.detach() - old).abs().max() for p, old in zip(self.factors, self.before, strict=True)]
        self.largest = float(max(moves)) / optimizer.param_groups[0]["lr"]


@torch.no_grad()
def _loss(job: Job, state: TrainState) -> float:
    """Compute the loss on the first 32 rows of the data, in one pass."""
    tokens = torch.from_numpy(job.loader.rows.take(torch.arange(32).numpy()))[:, : job.seq_len + 1]
    return float(state.model(tokens[:, :-1], labels=tokens[:, 1:])) / tokens[:, 1:].numel()
