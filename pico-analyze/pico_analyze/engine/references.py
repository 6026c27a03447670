"""Choose the other member of each similarity: a step of the run, another run, or another layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pico_contract.errors import UserError, nearest

from pico_analyze.components.circuits import UPDATES
from pico_analyze.components.select import MeasuredUnit, across_layers
from pico_analyze.engine.steps import choose_base
from pico_analyze.engine.work import Reference, WorkItem
from pico_analyze.metrics.registry import Metric
from pico_analyze.sources.base import Source

ReferenceChoice = str | int | Source | tuple[Source, str | int] | None
"""The other member of each similarity, as `measure` takes it.

- "first" or "last" (the default): the first or last step of the run that stores the kind.
- "previous": the step before each. "all": every earlier one among the steps that are measured.
- A number: that step of the run.
- "layers": every earlier layer of the same step. Circuits are left out, since heads do not
  correspond across layers.
- Another run: its step of the same number. Where it lacks one, the step is left out, or missing if
  it was asked for. A pair (run, step), the step "first", "last" or a number: that step of the run.

The reference is y of a metric, and the step or layer itself is x.
"""
LAYERS = "layers"
_STEPS_OF_THE_RUN = ("first", "last", "previous", "all")
_STEPS_OF_ANOTHER_RUN = ("first", "last", "same")

ReferencePlan = dict[int, tuple[Reference | None, ...]]
"""Step -> its references; None stands for one that is missing."""


@runtime_checkable
class Probed(Protocol):
    """A source that knows which tokens its activations belong to."""

    def probe(self, step: int) -> dict[str, str]:
        """Identify the token of each row of activations at `step` by named texts; {} if unknown."""


@dataclass(frozen=True)
class Comparison:
    """A checked `ReferenceChoice`: a step of `other`, or of the run itself if `other` is None."""

    reference: str | int
    other: Source | None = None

    @property
    def is_between_layers(self) -> bool:
        """Whether layers of the same step are compared instead of steps."""
        return self.reference == LAYERS

    def references(
        self,
        run: Source,
        kind: str,
        split: str | None,
        steps: Sequence[int],
        available: Sequence[int],
        asked: bool,
    ) -> ReferencePlan:
        """Choose the references of each of `steps`.

        Args:
            held: the steps of `run` that store the kind.
            asked: whether `steps` were asked for. Then one that the other run lacks is compared
                with a missing reference; otherwise it is left out.
        """
        if self.is_between_layers or kind == UPDATES:
            return {}
        if self.reference == "all":
            return {
                step: tuple(Reference(k) for k in available if k < step and k in steps)
                for step in steps
            }
        other = self.other or run
        stored = available if self.other is None else _steps_with(other, kind, split)
        if self.reference == "same":
            return {step: (Reference(step),) for step in steps if asked or step in stored}
        # A number may name any step of the run, also one that lacks this kind: then it is missing.
        base = choose_base("reference", self.reference, steps, stored, other.steps)
        return {step: (Reference(base[step]) if step in base else None,) for step in steps}


def between_layers(
    units: Sequence[MeasuredUnit], at: Sequence[int]
) -> Iterator[tuple[MeasuredUnit, ReferencePlan]]:
    """Yield each component of several layers, with every pair of its layers at each step."""
    for unit in across_layers(units):
        shifts = range(1, len(unit.keys))
        yield unit, {step: tuple(Reference(step, shift) for shift in shifts) for step in at}


def comparison(choice: ReferenceChoice) -> Comparison:
    """Check the reference that `measure` was given.

    Raises:
        UserError: an unknown name (with the nearest), or one that the run in question has no use
            for.
    """
    if choice is None:
        return Comparison("last")
    # Any object with the methods of a source may be one, so names and numbers are recognised first.
    if isinstance(choice, str | int):
        return Comparison(_checked_step(choice))
    other, step = choice if isinstance(choice, tuple) else (choice, "same")
    if not hasattr(other, "tensor"):
        raise UserError(f"reference should be a step, a name or another run but is {choice!r}")
    return Comparison(_checked_step_of_another(step), other)


def _checked_step(step: str | int) -> str | int:
    if step == "same":
        raise UserError(
            'reference "same" is the same step of another run, which is not named: in a '
            "configuration name it with reference_run, in Python give the run as the reference"
        )
    _check_known(step, (*_STEPS_OF_THE_RUN, LAYERS))
    return step


def _checked_step_of_another(step: str | int) -> str | int:
    if step in ("previous", "all", LAYERS):
        raise UserError(
            f'reference "{step}" is of the run itself: another run\'s is same, first, last or a step'
        )
    _check_known(step, _STEPS_OF_ANOTHER_RUN)
    return step


def _check_known(reference: str | int, names: Sequence[str]) -> None:
    if isinstance(reference, int) or reference in names:
        return
    listed = ", ".join(f'"{name}"' for name in names)
    near = "".join(f'; did you mean "{name}"?' for name in nearest(reference, names))
    raise UserError(f'reference should be {listed} or a step but is "{reference}"{near}')


def check_comparison(items: Sequence[WorkItem], metrics: Mapping[str, Metric]) -> None:
    """Raise UserError if `metrics` compare with a run that has nothing to compare.

    This is also the case if its activations are those of other tokens.
    """
    other = next((item.other for item in items if item.other is not None), None)
    # Metrics of one matrix have no use for another run, and no reason to refuse it.
    if other is None or all(metric.arity == 1 for metric in metrics.values()):
        return
    run = items[0].source
    pairs = {(item.kind, *steps) for item in items for steps in _step_pairs(item)}
    if not pairs:
        raise UserError(
            f'run "{run.name}" and run "{other.name}" have no step of the same kind in common: '
            f"choose other steps, or reference=first, last or a step of {other.name}"
        )
    # Sorted, so that the same mistake always gives the same message.
    for kind, step, reference in sorted(pairs):
        differs = kind == "activations" and _differing_tokens(run, step, other, reference)
        if differs:
            raise UserError(
                f'activations of "{run.name}" at step {step} and "{other.name}" at step {reference} are of different '
                f"tokens (their {differs} differs) and cannot be compared: leave that kind out, or observe one probe"
            )


def _differing_tokens(run: Source, step: int, other: Source, reference: int) -> str | None:
    """Name what shows that two runs' activations belong to different tokens, if anything."""
    if not (isinstance(run, Probed) and isinstance(other, Probed)):
        return None
    texts, other_texts = run.probe(step), other.probe(reference)
    # What only one of the two recorded proves nothing.
    for name, text in texts.items():
        if other_texts.get(name, text) != text:
            return name
    return None


def _step_pairs(item: WorkItem) -> Iterator[tuple[int, int]]:
    for step, references in item.references.items():
        for reference in references:
            if reference is not None:
                yield step, reference.step


def _steps_with(source: Source, kind: str, split: str | None) -> list[int]:
    """The steps of a source that store a kind of a split."""
    return [step for step in source.steps if split in source.splits(step, kind)]
