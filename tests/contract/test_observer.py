"""What training hands to observers, in types of the contract alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_contract.errors import UserError
from pico_contract.kinds import KINDS, SPLITS
from pico_contract.layout import RunLayout
from pico_contract.observer import GROUP, Factory, LiveObserver, Observation, ObservedRun

RUN = ObservedRun(RunLayout(Path("runs/a")), "a", {}, ("model.norm",), (("weights", None), ("gradients", "val")))


class Norms:
    """An observer in a few lines: the norm of every weight at each step."""

    def __init__(self, results: Path) -> None:
        self.results, self.norms = results, dict[int, float]()

    def resume(self, step: int) -> None:
        self.norms = {known: norm for known, norm in self.norms.items() if known <= step}

    def observe(self, observation: Observation) -> None:
        weights = observation.tensors["weights", None].values()
        self.norms[observation.step] = float(sum(weight.norm() for weight in weights))

    def close(self) -> None:
        pass


def norms(run: ObservedRun, options: Mapping[str, Any]) -> LiveObserver:
    if options:
        raise UserError(f'there is no option "{next(iter(options))}"')
    return Norms(run.layout.analysis("norms").root)


def test_the_types_are_all_that_an_observer_needs() -> None:
    """C11.1, C11.2: wrong options are refused at once, and what lies beyond a resumed step is dropped."""
    factory: Factory = norms
    with pytest.raises(UserError, match='no option "metrics"'):
        factory(RUN, {"metrics": []})
    observer = factory(RUN, {})
    assert isinstance(observer, Norms)
    for step in (0, 1, 2):
        observer.observe(Observation(step, 0, {("weights", None): {"w": torch.full((4,), float(step))}}))
    observer.resume(1)
    assert observer.norms == {0: 0.0, 1: 2.0}
    assert observer.results == Path("runs/a/analysis/norms")


def test_what_is_shown_cannot_be_replaced() -> None:
    observation = Observation(0, 0, {})
    for instance, field in ((RUN, "name"), (observation, "step")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(instance, field, "other")


def test_analysis_is_offered_under_the_group_of_the_contract() -> None:
    found = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    assert found["analyze"].split(":")[0].startswith("pico_analyze")


def test_kinds_and_splits_of_a_run_are_those_of_the_format() -> None:
    assert {kind for kind, _ in RUN.available} <= set(KINDS)
    assert {split for _, split in RUN.available} <= {None, *SPLITS}
