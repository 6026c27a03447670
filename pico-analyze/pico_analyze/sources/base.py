"""What the engine asks of a place that steps and tensors come from; one module per format
implements it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from pico_contract.errors import DamagedError, UserError, did_you_mean
from pico_contract.kinds import KINDS


class NotObservedError(DamagedError):
    """What a number needs was never observed, though everything that was is intact."""


class Source(Protocol):
    """A series of observed steps of one model.

    Further attributes are used if a source has them: `fingerprint` (see
    `pico_analyze.engine.cache`), without which results are not kept; `probe` (see
    `pico_analyze.engine.references`), without which activations are compared with those of any run
    that has as many rows; `positions` (`KnowsPositions`), without which each row of activations
    counts as a sequence of its own; `at_once`, the number of steps whose files fit where they are
    fetched to, or None; `n_tokens` (`CountsTokens`), without which nothing is measured of gradients of
    micro-batches; `origin`, what it was opened from, which tells it from another of the same name;
    `notes`, sentences on what was left out of it, and why; and `is_lost(step, kind)`, whether a
    damaged file may have held that kind.
    """

    @property
    def name(self) -> str:
        """Name in the `run` column of the table."""

    @property
    def model(self) -> Mapping[str, Any]:
        """Geometry under Hugging Face configuration names."""

    @property
    def steps(self) -> Sequence[int]:
        """Steps with something intact to read, ascending."""

    @property
    def damaged(self) -> Mapping[int, Sequence[str]]:
        """Step -> one sentence for each of its directories that is not intact."""

    def tokens(self, step: int) -> int | None:
        """Training tokens consumed up to `step`; None where it is not recorded."""

    def splits(self, step: int, kind: str) -> list[str | None]:
        """Splits of which `step` holds `kind`; [None] for weights, [] where it holds none."""

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """Names of the modules that have a tensor of `kind` at `step`."""

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        """The tensor in its stored dtype, on CPU."""


@runtime_checkable
class CountsTokens(Protocol):
    """A source that may hold gradients of micro-batches."""

    def n_tokens(self, step: int, split: str | None) -> Sequence[int]:
        """Terms of the loss in each micro-batch of `microbatch_gradients`; empty where the step
        holds none."""


@runtime_checkable
class KnowsPositions(Protocol):
    """A source that knows how many positions of each probe row its activations hold."""

    def positions(self, step: int) -> int:
        """Rows of activations that belong to one probe row, one after the other, at `step`; 1 if
        not recorded."""


def model_at(source: Source, step: int) -> Mapping[str, Any]:
    """The geometry at one step: of models that others trained, each step has a configuration of its
    own."""
    at = getattr(source, "model_at", None)
    return source.model if at is None else at(step)


def check_kind(kind: str) -> None:
    """Raise UserError, with the nearest, for what is not one of KINDS."""
    if kind not in KINDS:
        raise UserError(f'there is no kind "{kind}"{did_you_mean(kind, KINDS)}')


def no_step(
    place: object, step: int, steps: Sequence[int], damaged: Mapping[int, Sequence[str]]
) -> UserError:
    """Why `place` has no `step`: it is damaged, or was never there, with the nearest that is."""
    if step in damaged:
        return UserError(f"step {step} of {place} is damaged: {damaged[step][0]}")
    near = min(steps, key=lambda known: abs(known - step), default=None)
    hint = f"; the nearest is {near}" if near is not None else ": nothing was observed yet"
    return UserError(f"{place} has no step {step}{hint}")


def no_module(place: object, kind: str, module: str, known: Iterable[str]) -> UserError:
    """`place` holds no `kind` of `module`, with the nearest that it does hold."""
    return UserError(f'{place} has no {kind} of the module "{module}"{did_you_mean(module, known)}')
