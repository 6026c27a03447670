"""Measuring while a run trains: what training hands to an observer of another package, in types of
the contract alone.

A package offers an observer as an entry point of the group `pico.observers`: a factory that is
called with an `ObservedRun` and the observer's options before anything is trained, and checks both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pico_contract.layout import RunLayout

GROUP = "pico.observers"

Held = tuple[str, str | None]
"""(kind, split): (weights, None), (gradients, train), (gradients, val), (activations, val), ..."""


@dataclass(frozen=True)
class ObservedRun:
    """What an observer knows of a run before its first step."""

    layout: RunLayout
    name: str
    model: Mapping[str, Any]
    """Geometry, in the keys of `LlamaConfig`, as in run.json."""
    modules: tuple[str, ...]
    """What is observed, by Hugging Face name."""
    held: tuple[Held, ...]
    """What every observation holds; those of split train are absent after the last update."""
    low_rank: bool = False
    """Whether the method may give modules low-rank factors, which observations of weights then
    hold."""


@dataclass(frozen=True)
class Observation:
    """What was seen of theta_step. The tensors are on CPU, shared with whatever else looks at them:
    never changed."""

    step: int
    tokens: int
    """Terms of the loss consumed up to and including update `step`."""
    tensors: Mapping[Held, Mapping[str, torch.Tensor]]
    """Under the names, and in the dtype, that a snapshot stores them."""
    terms: tuple[int, ...] = ()
    """Of the loss, in each micro-batch of (microbatch_gradients, train)."""


class LiveObserver(Protocol):
    """Measures what it is shown. It may be slow, and it may fail: neither reaches training."""

    @property
    def results(self) -> Path:
        """The directory that it writes to, which no other observer of the run may share."""

    def resume(self, step: int) -> None:
        """The run begins (0) or goes on from `step`: what was measured beyond it is dropped, and
        measured again.

        Called once, by the holder of the run's lock; until then nothing may be written.
        """

    def observe(self, observation: Observation) -> None:
        """Measure; a step that was measured before is replaced."""

    def close(self) -> None:
        """The session has ended, in good order or not."""


Factory = Callable[[ObservedRun, Mapping[str, Any]], LiveObserver]
"""Raises UserError, with a sentence that names the option, for options that could not be
measured."""
