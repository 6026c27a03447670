"""A source of one observed step in memory, as training passes it to an observer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pico_contract.errors import UserError
from pico_contract.kinds import MICROBATCH_GRADIENTS
from pico_contract.observer import Observation, ObservedRun

from pico_analyze.sources.base import check_kind, no_module, no_step
from pico_analyze.sources.tensor_names import is_tied, modules_of, stored_name


class ObservedStep:
    """An `Observation` as a `Source` of one step, with the names and errors of a run on disk."""

    damaged: Mapping[int, Sequence[str]] = {}

    def __init__(self, run: ObservedRun, observation: Observation) -> None:
        self.name, self.model = run.name, run.model
        self.steps = [observation.step]
        self._observation = observation

    def tokens(self, step: int) -> int:
        """Return the training tokens consumed up to the observed step, which is the only one."""
        return self._observation.tokens

    def splits(self, step: int, kind: str) -> list[str | None]:
        """List the splits of which `kind` was observed: [None] for weights, [] if none."""
        check_kind(kind)
        return [split for observed, split in self._observation.tensors if observed == kind]

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """List the modules of which a tensor of `kind` was observed; errors as for `tensor`."""
        return modules_of(self._stored(step, kind, split), is_tied(self.model, kind))

    def tensor(
        self, step: int, kind: str, module: str, split: str | None = None
    ) -> torch.Tensor:
        """Return the observed tensor, which must not be changed; UserError if there is none."""
        stored = self._stored(step, kind, split)
        name = stored_name(module, stored, is_tied(self.model, kind))
        if name is None:
            raise no_module(self.name, kind, module, modules_of(stored, tied=False))
        return stored[name]

    def n_tokens(self, step: int, split: str | None) -> Sequence[int]:
        """Return the terms of the loss in each micro-batch; () without their gradients."""
        if (MICROBATCH_GRADIENTS, split) not in self._observation.tensors:
            return ()
        return self._observation.terms

    def _stored(self, step: int, kind: str, split: str | None) -> Mapping[str, torch.Tensor]:
        if step not in self.steps:
            raise no_step(self.name, step, self.steps, self.damaged)
        splits = self.splits(step, kind)
        # Without a split the only one is meant.
        chosen = [known for known in splits if split in (None, known)]
        if len(chosen) != 1:
            available = ", ".join(map(str, splits)) or "none"
            raise UserError(
                f"step {step} of {self.name} has {kind} of these splits: {available}; choose one of them"
            )
        return self._observation.tensors[kind, chosen[0]]
