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

KindSplit = tuple[str, str | None]
"""A kind and its split: (weights, None), (gradients, train), (gradients, val), (activations, val),
..."""


@dataclass(frozen=True)
class ObservedRun:
    """The facts that an observer has of a run before its first step."""

    layout: RunLayout
    name: str
    model: Mapping[str, Any]
    """Geometry, in the keys of `LlamaConfig`, as in run.json."""
    modules: tuple[str, ...]
    """The observed modules, by Hugging Face name."""
    available: tuple[KindSplit, ...]
    """The contents of every observation; those of split train are absent after the last update."""
    low_rank: bool = False
    """Whether the method may give modules low-rank factors, which observations of weights then
    hold."""


@dataclass(frozen=True)
class Observation:
    """The tensors of theta_step, on CPU. All observers share them, so they must not be changed."""

    step: int
    tokens: int
    """Terms of the loss consumed up to and including update `step`."""
    tensors: Mapping[KindSplit, Mapping[str, torch.Tensor]]
    """By kind and name, under the names and in the dtype of a snapshot."""
    terms: tuple[int, ...] = ()
    """Numbers of loss terms in each micro-batch of (microbatch_gradients, train)."""


class LiveObserver(Protocol):
    """An observer of a run that trains. It may be slow, and it may fail: neither reaches
    training."""

    @property
    def results(self) -> Path:
        """The directory that it writes to, which no other observer of the run may share."""

    def resume(self, step: int) -> None:
        """Drop what was measured beyond `step`, from which the run goes on (0: it begins); it is
        measured again.

        Called once, by the holder of the run's lock; until then nothing may be written.
        """

    def observe(self, observation: Observation) -> None:
        """Measure a step; one that was measured before is replaced."""

    def close(self) -> None:
        """End the session, in good order or not."""


Factory = Callable[[ObservedRun, Mapping[str, Any]], LiveObserver]
"""Maker of an observer; it raises a UserError that names the option for options that could not be
measured."""
