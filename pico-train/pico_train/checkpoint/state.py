"""Everything that continuing a run bit for bit needs, as one object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pico_contract.errors import DamagedError, UserError, in_one_line
from pico_contract.layout import METHOD_TENSORS, OPTIMIZER
from torch import nn

from pico_train.method.base import Method
from pico_train.model.cost import on_meta
from pico_train.model.decoder import Decoder
from pico_train.model.hf import load_weights
from pico_train.model.stock import difference, shapes_of
from pico_train.optim import load_optimizer_tensors, optimizer_tensors
from pico_train.sharding import full_tensor, full_tensors


def effective_weights(method: Method, model: Decoder) -> dict[str, torch.Tensor]:
    """Ask `method` for the weights of the plain decoder, and check that they are all of its tensors
    and no others.

    Raises:
        UserError: a tensor is missing, unknown or of another shape; names it and the method's
            class.
    """
    weights = dict(method.effective_weights(model))
    problem = difference(
        shapes_of(weights), shapes_of(dict(on_meta(model.config).named_parameters()))
    )
    if problem is not None:
        raise UserError(
            f"{type(method).__name__}.effective_weights should give the tensors of the plain decoder, but {problem}"
        )
    return weights


@dataclass
class Counters:
    """How far training is. All pure counts: no generator and no iterator has a state to save."""

    step: int = 0
    """Updates done; the model is theta_step."""
    reads: int = 0
    """Updates that read language-model rows; the next such update reads rows(reads + 1)."""
    tokens: int = 0
    """Terms of the loss consumed so far."""
    order_hash: str = ""
    """Chained hash of the row ids read so far."""


@dataclass
class TrainState:
    """Model, method, what trains, its optimizer, and the counters."""

    model: Decoder
    method: Method
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    counters: Counters = field(default_factory=Counters)

    def capture(self, *, everywhere: bool = False) -> SavedState:
        """The state as named tensors and scalars; tensors share memory with the live ones.

        What is sharded is put together by all processes, for the main one alone unless
        `everywhere`.
        """
        tensors, scalars = self.method.state_dict()
        weights = {
            name: tensor.detach()
            for name, tensor in effective_weights(self.method, self.model).items()
        }
        return SavedState(
            weights=full_tensors(weights, everywhere=everywhere),
            optimizer=full_tensors(
                optimizer_tensors(self.optimizer, self.parameters), everywhere=everywhere
            ),
            method_tensors=full_tensors(tensors, everywhere=everywhere),
            method_scalars=json.loads(
                json.dumps(scalars, allow_nan=False)
            ),  # after a rebuild as after a resume
            counters=asdict(self.counters),
        )

    def plain_decoder(self) -> Decoder:
        """A decoder of its own around the effective weights, in evaluation mode.

        It shares memory with the live parameters where the method's effective weights are those, so
        it costs no copy, but it has parameters (and `.grad`) of its own and no hooks or wrappers:
        observing and evaluating through it cannot disturb training. Where parameters are sharded it
        is a copy, which all processes put together, and only that of the main process has values:
        the others' lies on the meta device.
        """
        decoder = on_meta(self.model.config)
        effective = effective_weights(self.method, self.model)
        weights = {
            name: full_tensor(tensor.detach(), tensor.device) for name, tensor in effective.items()
        }
        load_weights(decoder, weights, assign=True)
        return decoder.eval()


@dataclass
class SavedState:
    """A `TrainState` at rest: what a checkpoint holds, and what a rebuild passes on."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    method_tensors: dict[str, torch.Tensor]
    method_scalars: dict[str, Any]
    counters: dict[str, Any]
    stepped: list[str] | None = None
    """Parameters that the optimizer had state of, as recorded beside it; None in checkpoints that
    do not say."""
    directory: Path | None = None
    """Directory `state/` that it was read from."""

    def copied(self) -> SavedState:
        """The same with tensors of its own on CPU, which the next update does not change."""
        weights, optimizer, method = (
            {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
            for tensors in (self.weights, self.optimizer, self.method_tensors)
        )
        return SavedState(weights, optimizer, method, self.method_scalars, self.counters)

    @contextmanager
    def reading_method(self, method: Method) -> Iterator[None]:
        """Name the file if `method` cannot build from what was saved; errors of a rebuild pass
        through."""
        try:
            yield
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RuntimeError,
            DamagedError,
        ) as error:
            if self.directory is None:
                raise
            why = str(error) if isinstance(error, DamagedError) else in_one_line(error)
            file = self.directory / METHOD_TENSORS
            raise DamagedError(
                f"{file}: {type(method).__name__} cannot build from this state ({why})"
            ) from error

    def check_method(self, method: Method) -> None:
        """DamagedError where the tensors that `method` now has are not those that it was given, by
        name and shape."""
        if self.directory is None:
            return
        problem = difference(
            shapes_of(self.method_tensors), shapes_of(method.state_dict()[0]), "this method's"
        )
        if problem is not None:
            raise DamagedError(f"{self.directory / METHOD_TENSORS}: {problem}")

    def restore_optimizer(self, state: TrainState, *, drop_unknown: bool = False) -> None:
        """Give `state` (freshly built around this object's weights and method state) its optimizer
        and counters.

        Raises:
            DamagedError: state of an unknown parameter or of another shape, or none of one that had
                been stepped.
        """
        file = (
            "the optimizer's state" if self.directory is None else str(self.directory / OPTIMIZER)
        )
        try:
            load_optimizer_tensors(
                state.optimizer, state.parameters, self.optimizer, drop_unknown=drop_unknown
            )
        except DamagedError as error:
            raise DamagedError(f"{file}: {error}") from None
        missing = sorted(set(self.stepped or ()) - set(stepped(self.optimizer)))
        if missing:
            raise DamagedError(f'{file}: the state of "{missing[0]}" is missing')
        state.counters = Counters(**self.counters)


def stepped(optimizer: Mapping[str, torch.Tensor]) -> list[str]:
    """List the parameters that `optimizer` (parameter.entry -> tensor) has state of."""
    return sorted({name.rpartition(".")[0] for name in optimizer})
