"""What similarities are taken between: steps of a run, a run and another, or the layers of a
step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pico_contract.errors import UserError, nearest

from pico_analyze.components.circuits import UPDATES
from pico_analyze.components.select import MeasuredUnit, across_layers
from pico_analyze.engine.steps import REFERENCES, choose_base
from pico_analyze.engine.work import Reference, WorkItem
from pico_analyze.metrics.registry import Metric
from pico_analyze.sources.base import Source

_OF_A_RUN = tuple(name for name in REFERENCES if name != "same")
_OF_ANOTHER = tuple(name for name in REFERENCES if name not in ("previous", "all"))
ACROSS = ("layers",)
NULLS = ("permutation",)
ReferencePlan = dict[int, tuple[Reference | None, ...]]


@runtime_checkable
class Probed(Protocol):
    """A source that knows which tokens its activations are of."""

    def probe(self, step: int) -> dict[str, str]:
        """What says which token each row of activations at `step` is of, by name; {} where it is
        not recorded."""


@dataclass(frozen=True)
class Comparison:
    """What each step is compared with: a step of the run or of `other`, or, layer by layer, with
    itself."""

    reference: str | int
    other: Source | None = None
    across: str | None = None
    draws: int = 0

    def references(
        self,
        run: Source,
        kind: str,
        split: str | None,
        at: Sequence[int],
        available: Sequence[int],
        asked: bool,
    ) -> ReferencePlan:
        """Step of `at` -> what it is compared with, None where there is none.

        `available` are the steps of `run` that hold the kind. A step that the other run lacks is left
        out, or compared with what is missing where the steps were `asked` for.
        """
        if self.across or kind == UPDATES:
            return {}
        if self.reference == "all":
            return {
                step: tuple(Reference(k) for k in available if k < step and k in at) for step in at
            }
        other = self.other or run
        available = available if self.other is None else _steps_with(other, kind, split)
        if self.reference == "same":
            return {step: (Reference(step),) for step in at if asked or step in available}
        base = choose_base("reference", self.reference, at, available, other.steps)
        return {step: (Reference(base[step]) if step in base else None,) for step in at}


def between_layers(
    units: Sequence[MeasuredUnit], at: Sequence[int]
) -> Iterator[tuple[MeasuredUnit, ReferencePlan]]:
    """Each component of several layers, with every pair of them at each step."""
    for unit in across_layers(units):
        yield (
            unit,
            {
                step: tuple(Reference(step, shift) for shift in range(1, len(unit.keys)))
                for step in at
            },
        )


def comparison(
    reference: str | int | None,
    other: Source | None,
    across: str | None,
    null: str | None,
    draws: int,
) -> Comparison:
    """What `measure` is asked to compare.

    Raises:
        UserError: a name that is not known (with the nearest), two comparisons at once, or too few
            draws.
    """
    _known("across", across, ACROSS)
    _known("null", null, NULLS)
    if across and (other or reference is not None):
        raise UserError(
            f"across={across} compares each step with itself: leave out reference and reference_run"
        )
    if null and (isinstance(draws, bool) or not isinstance(draws, int) or draws < 2):
        raise UserError(f"null_draws should be an integer of at least 2 but is {draws}")
    if reference is None:
        reference = "last" if other is None else "same"
    if isinstance(reference, str):
        if other is None and reference == "same":
            raise UserError(
                'reference "same" is the same step of another run: name it with reference_run'
            )
        if other is not None and reference in ("previous", "all"):
            raise UserError(
                f'reference "{reference}" is of the run itself: another run\'s is same, first, last or a step'
            )
        _known("reference", reference, _OF_A_RUN if other is None else _OF_ANOTHER, " or a step")
    return Comparison(reference, other, across, draws if null else 0)


def check_comparison(items: Sequence[WorkItem], metrics: Mapping[str, Metric]) -> None:
    """Raise UserError where `metrics` compare with a run that has nothing to compare, or with other
    tokens."""
    other = next((item.other for item in items if item.other is not None), None)
    if other is None or all(metric.arity == 1 for metric in metrics.values()):
        return
    pairs = {(item.kind, step, found.step) for item in items for step, found in _pairs(item)}
    run = items[0].source
    if not pairs:
        what = f'run "{run.name}" and run "{other.name}" have no step of the same kind in common'
        raise UserError(
            f"{what}: choose other steps, or reference=first, last or a step of {other.name}"
        )
    for step, reference in sorted(
        (step, reference) for kind, step, reference in pairs if kind == "activations"
    ):
        differs = _other_tokens(run, step, other, reference)
        if differs is not None:
            raise UserError(
                f'activations of "{run.name}" at step {step} and "{other.name}" at step {reference} are of different '
                f"tokens (their {differs} differs) and cannot be compared: leave that kind out, or observe one probe"
            )


def _other_tokens(run: Source, step: int, other: Source, reference: int) -> str | None:
    """What says that rows of activations are not of the same tokens; None where nothing does."""
    if not (isinstance(run, Probed) and isinstance(other, Probed)):
        return None
    ours, theirs = run.probe(step), other.probe(reference)
    return next((what for what in ours if ours[what] != theirs.get(what, ours[what])), None)


def _pairs(item: WorkItem) -> Iterator[tuple[int, Reference]]:
    return (
        (step, found)
        for step, references in item.references.items()
        for found in references
        if found
    )


def _steps_with(source: Source, kind: str, split: str | None) -> list[int]:
    """Steps of a source that hold a kind of a split."""
    return [step for step in source.steps if split in source.splits(step, kind)]


def _known(what: str, given: str | None, names: Sequence[str], more: str = "") -> None:
    if given is not None and given not in names:
        listed = ", ".join(f'"{name}"' for name in names)
        near = "".join(f'; did you mean "{name}"?' for name in nearest(str(given), names))
        raise UserError(f'{what} should be {listed}{more} but is "{given}"{near}')
