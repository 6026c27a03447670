"""Learning-rate schedules: a factor in [0, 1] that is a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """The course of the learning rate from 0 through its peak to its end."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    name: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up."""
    warmup_steps: int = 0
    """Updates of linear warm-up; 0 is off."""
    final_fraction: float = 0.0
    """Fraction of the peak that linear and cosine reach one update after the last."""
    restart_every: int = 0
    """Updates of a cycle. Each cycle warms the rate up again to the shape above, which is the
    jagged schedule of ReLoRA (Lialin et al. 2023, section 3). Cycles that begin within the first
    warm-up do not. 0 is off."""
    restart_warmup_steps: int = 0
    """Updates of the warm-up of each cycle, fewer than the cycle has; 0 is off."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 or more")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ValueError(
                f"final_fraction is {self.final_fraction}; it must lie between 0 and 1"
            )
        no_restarts = self.restart_every == self.restart_warmup_steps == 0
        if not no_restarts and not 0 < self.restart_warmup_steps < self.restart_every:
            raise ValueError(
                f"restart_warmup_steps is {self.restart_warmup_steps} and restart_every is {self.restart_every}; a"
                " warm-up of at least one update must be shorter than its cycle, or both must be 0"
            )


def lr_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the factor on the peak learning rate for update `step` (1-based) of `total_steps`.

    Update t of a warm-up of W uses t / W, so that no update is wasted on a rate of zero. The decay
    starts from 1 at update W (or 1) and would reach `final_fraction` at update total_steps + 1, so
    that the last update still learns. Update i of the W' that warm a cycle up again uses i / W' of
    the factor of the last of them.
    """
    if not config.restart_every:
        return _shape(config, step, total_steps)
    cycles = (step - 1) // config.restart_every
    cycle_start = cycles * config.restart_every
    in_cycle = step - cycle_start
    rewarm = config.restart_warmup_steps
    first_warmup = max(config.warmup_steps, 1)
    if cycle_start < first_warmup or in_cycle >= rewarm:
        return _shape(config, step, total_steps)
    # The shape at the end of the warm-up, so that the rate rises to where the shape goes on.
    target = min(cycle_start + rewarm, total_steps)
    return in_cycle / rewarm * _shape(config, target, total_steps)


def _shape(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the factor without restarts."""
    warmup = config.warmup_steps
    if step <= warmup:
        return step / warmup
    if config.name == "constant":
        return 1.0
    start = max(warmup, 1)
    progress = (step - start) / (total_steps + 1 - start)
    if config.name == "linear":
        remaining = 1.0 - progress
    else:
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_fraction + (1.0 - config.final_fraction) * remaining
