"""What a run holds, found by building it on shapes alone: no weights are drawn, nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pico_train.method.base import Method
from pico_train.model.decoder import Decoder
from pico_train.optim import build_optimizer, check_no_decay, optimizer_tensors
from pico_train.run import Job, build_method

Shapes = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Phase:
    """A stretch of a run in which the same parameters train, after its first update; tensors are on the meta device."""

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
    """The phases of a run, told apart by `Method.rebuild_at`; what depends on what is learnt, as ranks that adapt do,
    stays as it begins.

    Raises:
        UserError: what `Method.prepare` refuses; a pattern of `optimizer.no_decay` that fits nothing.
    """
    return list(_phases(job))


def _phases(job: Job) -> Iterator[Phase]:
    method = build_method(job.config.method)
    first = _phase(job, method)
    check_no_decay(job.config.optimizer, first.parameters)
    yield first
    for step in range(1, job.config.train.steps):
        if method.rebuild_at(step):
            tensors, scalars = method.state_dict()
            method = build_method(job.config.method)
            method.load_state_dict(tensors, json.loads(json.dumps(scalars)))
            yield _phase(job, method)


def _phase(job: Job, method: Method) -> Phase:
    with torch.device("meta"):
        model = Decoder(job.config.model)
    given = method.prepare(model, job.data, job.config.seed.method)
    parameters = {
        name: nn.Parameter(torch.empty_like(parameter, device="meta", requires_grad=False))
        for name, parameter in given.items()
    }
    optimizer = build_optimizer(job.config.optimizer, parameters)
    for parameter in parameters.values():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return Phase(model, method, parameters, optimizer_tensors(optimizer, parameters))


def _bytes(tensors: Shapes) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
