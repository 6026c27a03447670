"""The interface of sources of steps and tensors; one module per format implements it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from pico_contract.errors import DamagedError, UserError, did_you_mean
from pico_contract.kinds import KINDS


class NotObservedError(DamagedError):
    """A tensor that a metric needs was never observed, though everything observed is intact."""


class Source(Protocol):
    """A series of observed steps of one model.

    A source may have further attributes, which are used if they are there:

    - `fingerprint(step, kind, split)`: identifies the bytes of a kind (see
      `pico_analyze.engine.cache`); without it results are not cached.
    - `probe(step)`: identifies the probe rows (see `pico_analyze.engine.references`); without it
      activations are compared with those of any run that has the same number of rows.
    - `positions(step)`: see `KnowsPositions`; without it each row of activations counts as a
      separate sequence.
    - `n_tokens(step, split)`: see `CountsTokens`; without it gradients of micro-batches are not
      measured.
    - `model_at(step)`: see the function `model_at`.
    - `at_once`: the number of steps whose files fit on the disk that they are downloaded to, or
      None.
    - `origin`: what the source was opened from, which distinguishes it from another of one name.
    - `notes`: sentences on what was left out, and why.
    - `is_lost(step, kind)`: whether a damaged file may have contained that kind.
    """

    @property
    def name(self) -> str:
        """The name in the column `run` of the table."""

    @property
    def model(self) -> Mapping[str, Any]:
        """The geometry under Hugging Face configuration names."""

    @property
    def steps(self) -> Sequence[int]:
        """The steps with something intact to read, ascending."""

    @property
    def damaged(self) -> Mapping[int, Sequence[str]]:
        """Step -> a sentence for each of its directories that is not intact."""

    def tokens(self, step: int) -> int | None:
        """Return the training tokens consumed up to `step`; None if that is not recorded."""

    def splits(self, step: int, kind: str) -> list[str | None]:
        """List the splits that `step` has of `kind`: [None] for weights, [] if there are none."""

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """List the names of the modules that have a tensor of `kind` at `step`."""

    def tensor(
        self, step: int, kind: str, module: str, split: str | None = None
    ) -> torch.Tensor:
        """Read a tensor in its stored dtype, to the CPU."""


@runtime_checkable
class CountsTokens(Protocol):
    """A source that may have gradients of micro-batches."""

    def n_tokens(self, step: int, split: str | None) -> Sequence[int]:
        """Return the terms of the loss (tokens) in each micro-batch whose gradient is stored.

        Empty if the step has no `microbatch_gradients`.
        """


@runtime_checkable
class KnowsPositions(Protocol):
    """A source that knows how many positions of each probe row its activations have."""

    def positions(self, step: int) -> int:
        """Return the number of consecutive rows of activations that belong to one probe row.

        It is 1 if that is not recorded.
        """


def model_at(source: Source, step: int) -> Mapping[str, Any]:
    """Return the geometry at one step.

    The steps of a series of models, which were trained elsewhere, may differ in configuration.
    """
    of_step = getattr(source, "model_at", None)
    return source.model if of_step is None else of_step(step)


def check_kind(kind: str) -> None:
    """Raise UserError, with the nearest kind, if `kind` is not one of KINDS."""
    if kind not in KINDS:
        raise UserError(f'there is no kind "{kind}"{did_you_mean(kind, KINDS)}')


def no_step(
    place: object, step: int, steps: Sequence[int], damaged: Mapping[int, Sequence[str]]
) -> UserError:
    """Return an error that says why `place` has no `step`: damaged or absent, with the nearest."""
    if step in damaged:
        return UserError(f"step {step} of {place} is damaged: {damaged[step][0]}")
    if not steps:
        return UserError(f"{place} has no step {step}: nothing was observed yet")
    nearest = min(steps, key=lambda known: abs(known - step))
    return UserError(f"{place} has no step {step}; the nearest is {nearest}")


def no_module(place: object, kind: str, module: str, known: Iterable[str]) -> UserError:
    """Return an error that says that `place` has no `kind` of `module`, with the nearest one."""
    return UserError(
        f'{place} has no {kind} of the module "{module}"{did_you_mean(module, known)}'
    )
