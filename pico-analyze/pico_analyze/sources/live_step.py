"""One observed step whose tensors are in memory: what training hands to an observer, as a
source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pico_contract.errors import UserError
from pico_contract.kinds import MICROBATCH_GRADIENTS
from pico_contract.observer import Observation, ObservedRun

from pico_analyze.sources.base import check_kind, no_module, no_step
from pico_analyze.sources.tensor_names import is_tied, modules_of, stored_name


class ObservedStep:
    """An `Observation` with the face of a `Source` of one step; names and errors are those of a run
    on disk."""

    damaged: Mapping[int, Sequence[str]] = {}

    def __init__(self, run: ObservedRun, observation: Observation) -> None:
        self.name, self.model = run.name, run.model
        self.steps = [observation.step]
        self._observation = observation

    def tokens(self, step: int) -> int:
        """Of the step that was observed, which is the only one."""
        return self._observation.tokens

    def splits(self, step: int, kind: str) -> list[str | None]:
        """Splits of which `kind` was observed; [None] for weights, [] where it was not."""
        check_kind(kind)
        return [split for held, split in self._observation.tensors if held == kind]

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """Modules of which a tensor of `kind` was observed; errors as `tensor`."""
        return modules_of(self._stored(step, kind, split), is_tied(self.model, kind))

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        """The tensor as it was observed, which nobody changes; UserError where there is none."""
        stored = self._stored(step, kind, split)
        name = stored_name(module, stored, is_tied(self.model, kind))
        if name is None:
            raise no_module(self.name, kind, module, modules_of(stored, tied=False))
        return stored[name]

    def n_tokens(self, step: int, split: str | None) -> Sequence[int]:
        """Of the loss, in each micro-batch; () where their gradients were not observed."""
        return (
            self._observation.terms
            if (MICROBATCH_GRADIENTS, split) in self._observation.tensors
            else ()
        )

    def _stored(self, step: int, kind: str, split: str | None) -> Mapping[str, torch.Tensor]:
        if step not in self.steps:
            raise no_step(self.name, step, self.steps, self.damaged)
        splits = self.splits(step, kind)
        chosen = [one for one in splits if split in (None, one)]
        if len(chosen) != 1:
            there = ", ".join(str(one) for one in splits) or "none"
            raise UserError(
                f"step {step} of {self.name} has {kind} of these splits: {there}; choose one of them"
            )
        return self._observation.tensors[kind, chosen[0]]
