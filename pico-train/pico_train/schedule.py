"""Learning-rate schedules: a factor in [0, 1] as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves from 0 through its peak to its end."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    name: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up."""
    warmup_steps: int = 0
    """Updates of linear warm-up; 0 is off."""
    final_fraction: float = 0.0
    """Share of the peak that linear and cosine reach one update after the last."""
    restart_every: int = 0
    """Updates of a cycle, after each of which the rate warms up once more to the shape above: a
    jagged schedule, as ReLoRA has it (Lialin et al. 2023, section 3); cycles that begin within the
    first warm-up have none. 0 is off."""
    restart_warmup_steps: int = 0
    """Updates of each of these warm-ups, fewer than a cycle's; 0 is off."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 or more")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ValueError(
                f"final_fraction is {self.final_fraction}; it must lie between 0 and 1"
            )
        if not (
            self.restart_every == self.restart_warmup_steps == 0
            or 0 < self.restart_warmup_steps < self.restart_every
        ):
            raise ValueError(
                f"restart_warmup_steps is {self.restart_warmup_steps} and restart_every is {self.restart_every}; a"
                " warm-up of at least one update must be shorter than its cycle, or both must be 0"
            )


def lr_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor on the peak learning rate for update `step` (1-based) of `total_steps`.

    Update t of a warm-up of W uses t / W, so that no update is wasted on a rate of zero; the decay
    starts from 1 at update W (or 1) and would reach `final_fraction` at update total_steps + 1, so
    that the last update still learns. Update i of the W' that warm a cycle up again uses i / W' of
    what the last of them has: no rate is zero there.
    """
    before = (
        (step - 1) // config.restart_every * config.restart_every if config.restart_every else 0
    )
    place, rewarm = step - before, config.restart_warmup_steps
    if before >= max(config.warmup_steps, 1) and place < rewarm:
        return place / rewarm * _shape(config, min(before + rewarm, total_steps), total_steps)
    return _shape(config, step, total_steps)


def _shape(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The factor without restarts."""
    warmup = config.warmup_steps
    if step <= warmup:
        return step / warmup
    if config.name == "constant":
        return 1.0
    start = max(warmup, 1)
    progress = (step - start) / (total_steps + 1 - start)
    remaining = (
        1.0 - progress if config.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    )
    return config.final_fraction + (1.0 - config.final_fraction) * remaining
