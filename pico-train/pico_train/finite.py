"""What is not finite is never stepped: the host looks before each step or, where the device itself leaves such an
update out, later, so that it need not wait for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pico_train.distributed import Runtime
from pico_train.shares import is_share
from pico_train.state import Counters, TrainState

_HOLDING = ("cuda",)
"""Devices that work on while the host goes on, and whose fused AdamW can be told by a tensor of theirs not to step."""


@dataclass
class Update:
    """The gradient of one update as computed, before clipping; it lies in the parameters' `.grad`.

    `loss` and `norm` are what the host has read: NaN until then.
    """

    step: int
    before: Counters
    """Of theta_(step - 1)."""
    loss: float = math.nan
    norm: float = math.nan
    terms: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    row_ids: np.ndarray | None = None  # (batch,) int64; None where the method read no language-model rows
    losses: torch.Tensor | None = None  # (micro-batches,) sums of this process, on the device
    scale: float = 1.0
    """One over the terms of all processes."""
    norm_on_device: torch.Tensor | None = None

    @property
    def finite(self) -> bool:
        """Whether the loss and the gradient are, once read."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def can_wait(state: TrainState, device: torch.device, step: int) -> bool:
    """Whether the host may learn later that update `step` was not finite, the device having left parameters and moments
    as they were.

    Fused AdamW does so where it finds what `torch.amp.GradScaler` gives it; on shares that is untried. A method that
    acts after an update would act on one that was left out.
    """
    fused = getattr(state.optimizer, "_step_supports_amp_scaling", False)
    whole = not any(is_share(parameter) for parameter in state.parameters.values())
    return device.type in _HOLDING and fused and whole and not state.method.acts_after(step)


def hold_back(state: TrainState, update: Update, runtime: Runtime) -> None:
    """Tell the device to leave out the step of `update`, unless it is finite in every process, and all that come after
    one that was left out: the state stays that before the first of them."""
    assert update.losses is not None
    assert update.norm_on_device is not None
    finite = torch.isfinite(update.losses).all() & torch.isfinite(update.norm_on_device)
    held = runtime.largest((~finite).float())
    before = getattr(state.optimizer, "found_inf", None)
    state.optimizer.found_inf = held if before is None else torch.maximum(before, held)  # type: ignore[attr-defined]


def read_losses(updates: Sequence[Update], runtime: Runtime) -> None:
    """Wait for the device, and put the mean loss over all processes into each of `updates`."""
    if not updates:
        return
    here = [math.fsum(update.losses.tolist()) for update in updates if update.losses is not None]
    for update, loss in zip(updates, runtime.sums(here), strict=True):
        update.loss = loss * update.scale
