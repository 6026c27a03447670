"""The state of training: live (`TrainState`), and captured for a checkpoint (`SavedState`)."""

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

_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)
"""Errors that a method may raise when it is given the state of another method or version."""


def effective_weights(method: Method, model: Decoder) -> dict[str, torch.Tensor]:
    """Return the weights of the plain decoder that computes the same as `model` under `method`.

    Raises:
        UserError: a tensor of the decoder is missing, unknown or of another shape; names it and
            the method's class.
    """
    weights = dict(method.effective_weights(model))
    expected = dict(on_meta(model.config).named_parameters())
    problem = difference(shapes_of(weights), shapes_of(expected))
    if problem is not None:
        raise UserError(
            f"{type(method).__name__}.effective_weights should give the tensors of the plain decoder, but {problem}"
        )
    return weights


@dataclass
class Counters:
    """The progress of training, as pure counts: no generator and no iterator has a state to
    save."""

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
    """The live state of training: model, method, trained parameters, optimizer and counters."""

    model: Decoder
    method: Method
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    counters: Counters = field(default_factory=Counters)

    def capture(self, *, everywhere: bool = False) -> SavedState:
        """Capture the state as named tensors and scalars; the tensors share memory with live ones.

        If the state is sharded, every process must call this. The main process alone gets whole
        tensors, unless `everywhere` is set.
        """
        method_tensors, method_scalars = self.method.state_dict()
        effective = effective_weights(self.method, self.model)
        weights = {name: tensor.detach() for name, tensor in effective.items()}
        optimizer = optimizer_tensors(self.optimizer, self.parameters)
        # Through JSON, so that a rebuild sees exactly what a resume from a checkpoint would.
        scalars = json.loads(json.dumps(method_scalars, allow_nan=False))
        return SavedState(
            weights=full_tensors(weights, everywhere=everywhere),
            optimizer=full_tensors(optimizer, everywhere=everywhere),
            method_tensors=full_tensors(method_tensors, everywhere=everywhere),
            method_scalars=scalars,
            counters=asdict(self.counters),
        )

    def plain_decoder(self) -> Decoder:
        """Build a separate decoder around the effective weights, in evaluation mode.

        It has separate parameters (and `.grad`) and no hooks or wrappers, so that observing and
        evaluating it cannot disturb training. If the effective weights are the live parameters
        themselves, it shares their memory and costs no copy. If they are sharded, every process
        must call this; it is then a copy, on the meta device in all but the main process.
        """
        decoder = on_meta(self.model.config)
        weights = {}
        for name, tensor in effective_weights(self.method, self.model).items():
            weights[name] = full_tensor(tensor.detach(), tensor.device)
        # `assign` puts the tensors themselves in place, which is what shares their memory.
        load_weights(decoder, weights, assign=True)
        return decoder.eval()


@dataclass
class SavedState:
    """A captured `TrainState`, as a checkpoint stores it and a rebuild passes it on."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    method_tensors: dict[str, torch.Tensor]
    method_scalars: dict[str, Any]
    counters: dict[str, Any]
    stepped: list[str] | None = None
    """Parameters that the optimizer had state of; None in old checkpoints, which do not record
    it."""
    directory: Path | None = None
    """Directory `state/` that this was read from; None after a rebuild."""

    def copied(self) -> SavedState:
        """Copy the tensors to CPU, where the next update does not change them."""
        return SavedState(
            weights=_copied(self.weights),
            optimizer=_copied(self.optimizer),
            method_tensors=_copied(self.method_tensors),
            method_scalars=self.method_scalars,
            counters=self.counters,
        )

    @contextmanager
    def reading_method(self, method: Method) -> Iterator[None]:
        """Name the file if `method` cannot build from this state.

        Errors of a rebuild pass through: they are the method's own, not of a file.
        """
        try:
            yield
        except (*_UNREADABLE, DamagedError) as error:
            if self.directory is None:
                raise
            reason = str(error) if isinstance(error, DamagedError) else in_one_line(error)
            file = self.directory / METHOD_TENSORS
            raise DamagedError(
                f"{file}: {type(method).__name__} cannot build from this state ({reason})"
            ) from error

    def check_method(self, method: Method) -> None:
        """Check that the tensors of `method` are those of this state, by name and shape.

        Raises:
            DamagedError: they differ; names the file and the first tensor.
        """
        if self.directory is None:
            return
        tensors, _ = method.state_dict()
        problem = difference(
            shapes_of(self.method_tensors), shapes_of(tensors), "this method's"
        )
        if problem is not None:
            raise DamagedError(f"{self.directory / METHOD_TENSORS}: {problem}")

    def restore_optimizer(self, state: TrainState, *, drop_unknown: bool = False) -> None:
        """Load optimizer and counters into `state`, which was built from the rest of this object.

        Raises:
            DamagedError: there is state of an unknown parameter or of another shape, or none of a
                parameter that the optimizer had stepped.
        """
        file = (
            "the optimizer's state"
            if self.directory is None
            else str(self.directory / OPTIMIZER)
        )
        try:
            load_optimizer_tensors(
                state.optimizer, state.parameters, self.optimizer, drop_unknown=drop_unknown
            )
        except DamagedError as error:
            raise DamagedError(f"{file}: {error}") from None
        # An edited file could otherwise lose moments without an error.
        missing = sorted(set(self.stepped or ()) - set(stepped(self.optimizer)))
        if missing:
            raise DamagedError(f'{file}: the state of "{missing[0]}" is missing')
        state.counters = Counters(**self.counters)


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Without `copy`, tensors that are on the CPU already would stay the live ones.
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def stepped(optimizer: Mapping[str, torch.Tensor]) -> list[str]:
    """List the parameters that `optimizer` (parameter.entry -> tensor) has state of."""
    return sorted({name.rpartition(".")[0] for name in optimizer})
