"""What becomes of the optimizer's memory of factors that a restart has replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from pico_train.seeds import generator

Reset = Literal["all", "shared_pruning", "magnitude_pruning", "independent_pruning"]
MOMENTS = ("exp_avg", "exp_avg_sq")


def reset(
    how: Reset,
    ratio: float,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.Tensor],
    seed: int,
    step: int,
) -> None:
    """Forget, in place, the state of `parameters`: all of it, or the share `ratio` of the moments'
    entries.

    The step counter begins anew whenever moments of both kinds go together: m / sqrt(v) of an entry
    is then at most about 1 in its first update, as at the beginning of training, since the bias
    corrections speak of the same age (Kingma & Ba 2015, section 3). "independent_pruning" is a
    fault of earlier code: it keeps the counter and prunes each moment by a mask of its own, after
    which entries whose second moment alone went move by many times the learning rate, and entries
    of which both went by (1 - beta1) / sqrt(1 - beta2), 3.2 times.
    """
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter)
        if not state:  # it never had a gradient
            continue
        draws = generator(seed, "prune", name, step)
        if how == "all":
            for tensor in state.values():
                tensor.zero_()
        elif how == "independent_pruning":
            for entry in MOMENTS:
                state[entry].mul_(_kept(state[entry], ratio, draws))
        else:
            kept = (
                _largest(state["exp_avg"], ratio)
                if how == "magnitude_pruning"
                else _kept(parameter, ratio, draws)
            )
            for entry in MOMENTS:
                state[entry].mul_(kept)
            state["step"].zero_()


def _kept(like: torch.Tensor, ratio: float, draws: torch.Generator) -> torch.Tensor:
    """A random mask, False for about the share `ratio` of the entries."""
    return (torch.rand(like.shape, generator=draws) >= ratio).to(like.device)


def _largest(moment: torch.Tensor, ratio: float) -> torch.Tensor:
    """A mask, False for the share `ratio` of the entries: the smallest in magnitude."""
    gone = round(ratio * moment.numel())
    if gone == 0:
        return torch.ones_like(moment, dtype=torch.bool)
    mask = torch.ones(moment.numel(), dtype=torch.bool, device=moment.device)
    mask[moment.flatten().abs().argsort(stable=True)[:gone]] = False
    return mask.view_as(moment)
