"""The optimizer state of factors after a restart: what it forgets and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from pico_train.seeds import generator

Reset = Literal["all", "shared_pruning", "magnitude_pruning", "independent_pruning"]
"""The ways to forget; `reset` explains them."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's names for its two moments in the optimizer state."""


def reset(
    how: Reset,
    ratio: float,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.Tensor],
    seed: int,
    step: int,
) -> None:
    """Forget the optimizer state of `parameters` in place: all of it, or a share of the moments.

    `ratio` is the share of the moments' entries that pruning sets to zero. "shared_pruning" draws
    one random mask for both moments; "magnitude_pruning" drops the smallest entries of the first.

    The step counter restarts whenever both moments of an entry go together. Then m / sqrt(v) of an
    entry is at most about 1 in its first update, as at the beginning of training, because both bias
    corrections refer to the same age (Kingma & Ba 2015, section 3).

    "independent_pruning" reproduces a fault of earlier code: it keeps the counter and prunes each
    moment by its own mask. Entries that lose only the second moment then move by many times the
    learning rate, and entries that lose both by (1 - beta1) / sqrt(1 - beta2), 3.2 times.
    """
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter)
        if not state:  # the parameter never had a gradient
            continue
        draws = generator(seed, "prune", name, step)
        if how == "all":
            for tensor in state.values():
                # Moments and step counter alike.
                tensor.zero_()
        elif how == "independent_pruning":
            for moment in MOMENTS:
                state[moment].mul_(_random_mask(state[moment], ratio, draws))
        else:
            if how == "magnitude_pruning":
                mask = _mask_of_largest(state["exp_avg"], ratio)
            else:
                mask = _random_mask(parameter, ratio, draws)
            for moment in MOMENTS:
                state[moment].mul_(mask)
            state["step"].zero_()


def _random_mask(like: torch.Tensor, ratio: float, draws: torch.Generator) -> torch.Tensor:
    """Draw a mask that is False for about the share `ratio` of the entries."""
    # Drawn on the CPU, so that every device gets the same mask.
    return (torch.rand(like.shape, generator=draws) >= ratio).to(like.device)


def _mask_of_largest(moment: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return a mask that is False for the share `ratio` of the entries smallest in magnitude."""
    n_forgotten = round(ratio * moment.numel())
    if n_forgotten == 0:
        return torch.ones_like(moment, dtype=torch.bool)
    mask = torch.ones(moment.numel(), dtype=torch.bool, device=moment.device)
    smallest = moment.flatten().abs().argsort(stable=True)[:n_forgotten]
    mask[smallest] = False
    return mask.view_as(moment)
