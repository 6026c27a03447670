"""What a run holds, found by building it on shapes alone: no weights are drawn, nothing is
trained."""

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
_MOST = 8
"""Phases that are looked at: of a method that rebuilds again and again the others are taken to be
no larger."""


@dataclass(frozen=True)
class Phase:
    """A stretch of a run in which the same parameters train, after its first update; `parameters`
    and `optimizer` are shapes alone (meta device)."""

    model: Decoder
    method: Method
    parameters: dict[str, nn.Parameter]
    optimizer: Shapes

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of weights, gradients and optimizer on the device that trains."""
        return {
            "weights": _bytes(dict(self.model.named_parameters()) | self.parameters),
            "gradients": _bytes(self.parameters),
            "optimizer": _bytes(self.optimizer),
        }


def phases(job: Job) -> list[Phase]:
    """The phases of a run, told apart by `Method.rebuild_at`; what depends on what is learnt, as
    ranks that adapt do, stays as it begins.

    Raises:
        UserError: what `Method.prepare` refuses; a pattern of `optimizer.no_decay` that fits
            nothing.
    """
    return list(_phases(job))


def _phases(job: Job) -> Iterator[Phase]:
    state: State | None = None
    step, last = 0, job.config.train.steps
    for _ in range(_MOST):
        phase = _phase(job, state)
        if state is None:
            check_no_decay(job.config.optimizer, phase.parameters)
        yield phase
        step = next((s for s in range(step + 1, last) if phase.method.rebuild_at(s)), last)
        if step == last:
            return
        state = phase.method.state_dict()


def _phase(job: Job, state: State | None) -> Phase:
    try:
        model, method, given = _built(job, state, "meta")
    except RuntimeError:  # the method looks at values, which shapes have not
        model, method, given = _built(job, state, "cpu")
    effective_weights(method, model)
    parameters = {
        name: nn.Parameter(torch.empty_like(parameter, device="meta", requires_grad=False))
        for name, parameter in given.items()
    }
    optimizer = build_optimizer(job.config.optimizer, parameters)
    for parameter in parameters.values():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return Phase(model, method, parameters, optimizer_tensors(optimizer, parameters))


def _built(
    job: Job, state: State | None, device: str
) -> tuple[Decoder, Method, dict[str, nn.Parameter]]:
    method = build_method(job.config.method)
    if state is not None:
        method.load_state_dict(state[0], json.loads(json.dumps(state[1])))
    with torch.device(device):
        model = Decoder(job.config.model)
    return model, method, method.prepare(model, job.data, job.config.seed.method)


def _bytes(tensors: Shapes) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
