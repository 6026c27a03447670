"""A dry run: the model, method and optimizer of each phase of a run, built on shapes alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pico_train.checkpoint.state import effective_weights
from pico_train.method.base import Method
from pico_train.model.decoder import Decoder
from pico_train.optim import build_optimizer, check_no_decay, optimizer_tensors
from pico_train.run.job import Job, build_method

Shapes = Mapping[str, torch.Tensor]
State = tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]
"""Tensors and scalars of a method, as `Method.state_dict` returns them."""
_MOST_PHASES = 8
"""Phases that are built; those of a method that rebuilds more often are taken to be no larger."""


@dataclass(frozen=True)
class Memory:
    """Bytes of weights, gradients and optimizer on the device that trains."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """The sum of all three."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Phase:
    """A stretch of a run in which the same parameters train, after its first update.

    `parameters` and `optimizer` are shapes alone (meta device).
    """

    model: Decoder
    method: Method
    parameters: dict[str, nn.Parameter]
    optimizer: Shapes

    @property
    def memory(self) -> Memory:
        """The memory that this phase takes."""
        weights = dict(self.model.named_parameters()) | self.parameters
        return Memory(_bytes(weights), _bytes(self.parameters), _bytes(self.optimizer))


def phases(job: Job) -> list[Phase]:
    """Build the phases of a run, which `Method.rebuild_at` separates.

    Whatever depends on the training itself, such as an adaptive rank, keeps its initial size.

    Raises:
        UserError: `Method.prepare` refuses the run, or a pattern of `optimizer.no_decay` fits
            nothing.
    """
    return list(_phases(job))


def _phases(job: Job) -> Iterator[Phase]:
    state: State | None = None
    step, last = 0, job.config.train.steps
    for _ in range(_MOST_PHASES):
        # Each phase is built from the method's state in the one before it.
        phase = _phase(job, state)
        if state is None:
            check_no_decay(job.config.optimizer, phase.parameters)
        yield phase
        step = _next_rebuild(phase.method, step, last)
        if step == last:
            return
        state = phase.method.state_dict()


def _next_rebuild(method: Method, step: int, last: int) -> int:
    """Return the first step after `step` at which the method rebuilds, or `last`."""
    for later in range(step + 1, last):
        if method.rebuild_at(later):
            return later
    return last


def _phase(job: Job, state: State | None) -> Phase:
    try:
        model, method, trained = _build(job, state, "meta")
    except RuntimeError:  # the method looks at values, which tensors on the meta device lack
        model, method, trained = _build(job, state, "cpu")
    # A method that gives other tensors is refused here, before anything is trained.
    effective_weights(method, model)
    parameters = {name: _on_meta(parameter) for name, parameter in trained.items()}
    optimizer = build_optimizer(job.config.optimizer, parameters)
    # The optimizer creates its state in its first step.
    for parameter in parameters.values():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return Phase(model, method, parameters, optimizer_tensors(optimizer, parameters))


def _build(
    job: Job, state: State | None, device: str
) -> tuple[Decoder, Method, dict[str, nn.Parameter]]:
    """Build model and method, and the parameters that train, without drawing weights."""
    method = build_method(job.config.method)
    if state is not None:
        tensors, scalars = state
        # As a checkpoint would give them back.
        stored_scalars = json.loads(json.dumps(scalars))
        method.load_state_dict(tensors, stored_scalars)
    with torch.device(device):
        model = Decoder(job.config.model)
    parameters = method.prepare(model, job.data, job.config.seed.method)
    return model, method, parameters


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta", requires_grad=False))


def _bytes(tensors: Shapes) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
