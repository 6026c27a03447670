"""measure(): what was asked -> work items -> rows -> table. A work item is one unit of one kind at all steps.

Going module by module rather than step by step keeps one reference in memory at a time and lets the decompositions of
all steps of a module run as one batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from pico_contract.errors import DamagedError, UserError, did_you_mean

from pico_analyze import linalg
from pico_analyze.components import check, plan
from pico_analyze.item import Row, Work, measure_item
from pico_analyze.metrics import resolve
from pico_analyze.selection import Steps, choose_steps
from pico_analyze.sources import KINDS, SPLITS, Source
from pico_analyze.table import from_rows

if TYPE_CHECKING:
    import pandas as pd

COMPONENTS = ("*_proj", "ov_circuit")


class DamagedWarning(UserWarning):
    """Part of a run could not be read; the rest was measured."""


def measure(
    run: Source,
    metrics: Sequence[str | Callable[..., Any]] | None = None,
    components: Sequence[str] | None = None,
    steps: Steps = None,
    kinds: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    reference: str | int = "last",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Compute metrics of a run's components over steps, as the tidy table of `pico_analyze.table`.

    Args:
        metrics: names of `METRICS`, functions of a float64 tensor, or `module:attribute`; all of METRICS by default.
        components: globs over module names, and circuits (`ov_circuit`); "*_proj" and the circuits by default.
        steps: a list, or {start, end, step} (inclusive, never beyond `end`); by default those that hold the kind.
        kinds: of weights, gradients, activations; all by default. splits: of train, val; all by default.
        reference: the step that similarities are taken to: "first" or "last" of those that hold the kind, or a number.
        progress: called with (work items done, all).

    Combinations that mean nothing are left out: spectral metrics of vectors, entries of a circuit, similarities of
    anything but activations. What a step lacks has status `missing`.

    Raises:
        UserError: an unknown metric, component, kind, split or step (with the nearest), or nothing to measure.

    Warns:
        DamagedWarning: once for each part of the run that is not readable; its rows have status `missing`.
    """
    chosen = resolve(metrics)
    kinds = _known("kind", kinds, KINDS)
    splits = _known("split", splits, SPLITS)
    at = choose_steps(steps, sorted({*run.steps, *run.damaged}))
    for step in at:
        for sentence in run.damaged.get(step, ()):
            warnings.warn(f"step {step} is left out in part: {sentence}", DamagedWarning, stacklevel=2)
    items = _work(run, components or COMPONENTS, None if steps is None else at, kinds, splits, reference)
    rows: list[Row] = []
    unreadable: dict[str, None] = {}
    with linalg.pool() as pool:
        for done, (found, damages) in enumerate(pool.map(partial(measure_item, metrics=chosen), items), start=1):
            rows += found
            unreadable |= dict.fromkeys(damages)
            if progress:
                progress(done, len(items))
    for sentence in unreadable:
        warnings.warn(sentence, DamagedWarning, stacklevel=2)
    if not rows:
        raise UserError(f'nothing to measure in run "{run.name}": no such metric of such kinds and components')
    return from_rows(rows)


def _known(what: str, given: Sequence[str] | None, all_: tuple[str, ...]) -> tuple[str, ...]:
    for name in given or ():
        if name not in all_:
            raise UserError(f'there is no {what} "{name}"{did_you_mean(name, all_)}')
    return tuple(given or all_)


def _work(
    run: Source,
    components: Sequence[str],
    steps: tuple[int, ...] | None,
    kinds: Sequence[str],
    splits: Sequence[str],
    reference: str | int,
) -> list[Work]:
    """Work items; without `steps` each kind is measured at the steps that hold it, and at those that are damaged."""
    held = _holdings(run, kinds, splits)
    if not held:
        raise UserError(f'run "{run.name}" has no intact {" or ".join(kinds)} (of split {" or ".join(splits)}) to read')
    modules = {of: list(dict.fromkeys(chain(*by_step.values()))) for of, by_step in held.items()}
    check(components, list(dict.fromkeys(chain(*modules.values()))))
    items = []
    for (kind, split), by_step in held.items():
        at = tuple(sorted({*by_step, *run.damaged})) if steps is None else steps
        readable = [step for step, found in by_step.items() if found]
        for unit in plan(components, kind, modules[kind, split], run.model):
            items.append(Work(run, unit, kind, split, at, _reference(run, reference, readable)))
    return items


def _holdings(
    run: Source, kinds: Sequence[str], splits: Sequence[str]
) -> dict[tuple[str, str | None], dict[int, list[str]]]:
    """(kind, split) -> step -> modules that it holds, [] where they cannot be read, over all steps of the run."""
    held: dict[tuple[str, str | None], dict[int, list[str]]] = {}
    for kind in kinds:
        for step in run.steps:
            for split in run.splits(step, kind):
                if split is not None and split not in splits:
                    continue
                by_step = held.setdefault((kind, split), {})
                try:
                    by_step[step] = run.modules(step, kind, split)
                except DamagedError:
                    by_step[step] = []  # reported where the tensors are read
    return held


def _reference(run: Source, reference: str | int, steps: list[int]) -> int:
    if reference in ("first", "last"):
        return steps[0] if reference == "first" else steps[-1]
    if not isinstance(reference, int):
        raise UserError(f'reference should be "first", "last" or a step but is "{reference}"')
    if reference not in run.steps:
        near = min(run.steps, key=lambda k: abs(k - reference))
        raise UserError(f"the reference step {reference} is not in the run; the nearest is {near}")
    return reference
