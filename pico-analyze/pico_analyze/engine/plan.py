"""Plan a request: check it and split it into work items."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from pico_contract.errors import DamagedError, UserError, did_you_mean
from pico_contract.kinds import KINDS, SPLITS

from pico_analyze.components.circuits import UPDATES
from pico_analyze.components.omissions import report_omissions
from pico_analyze.components.select import check_components, plan_units
from pico_analyze.engine.damage import warn_damaged
from pico_analyze.engine.references import Comparison, between_layers
from pico_analyze.engine.steps import Steps, choose_base, choose_steps
from pico_analyze.engine.work import WorkItem
from pico_analyze.sources.base import Source


def plan_work(
    run: Source,
    components: Sequence[str] | None,
    steps: Steps,
    kinds: Sequence[str] | None,
    splits: Sequence[str] | None,
    compared: Comparison,
    window: str | int,
    dense_circuits: bool,
) -> list[WorkItem]:
    """Work items; warns of each damaged directory of the steps that are asked for, of either
    run."""
    kinds = _known("kind", kinds or KINDS, (*KINDS, UPDATES))
    splits = _known("split", splits or SPLITS, SPLITS)
    at = choose_steps(steps, sorted({*run.steps, *run.damaged}))
    sources = [run] if compared.other is None else [run, compared.other]
    damages = [
        f"step {step} is left out in part: {sentence}"
        for source in sources
        for step in at
        for sentence in source.damaged.get(step, ())
    ]
    warn_damaged(damages, 4)
    return _work(
        run,
        components,
        None if steps is None else at,
        kinds,
        splits,
        compared,
        window,
        dense_circuits,
    )


def _known(what: str, given: Sequence[str], all_: tuple[str, ...]) -> tuple[str, ...]:
    for name in given:
        if name not in all_:
            raise UserError(f'there is no {what} "{name}"{did_you_mean(name, all_)}')
    return tuple(given)


def _work(
    run: Source,
    components: Sequence[str] | None,
    steps: tuple[int, ...] | None,
    kinds: Sequence[str],
    splits: Sequence[str],
    compared: Comparison,
    window: str | int,
    dense_circuits: bool,
) -> list[WorkItem]:
    """Work items; without `steps` each kind is measured at the steps that hold it, and at those
    that are damaged."""
    available = _available(run, kinds, splits)
    if not available:
        raise UserError(
            f'run "{run.name}" has no intact {" or ".join(kinds)} (of split {" or ".join(splits)}) to read'
        )
    modules = {
        of: list(dict.fromkeys(chain(*by_step.values()))) for of, by_step in available.items()
    }
    every = list(dict.fromkeys(chain(*modules.values())))
    if components is not None:
        check_components(components, every)
    items = []
    for (kind, split), by_step in available.items():
        at = tuple(sorted({*by_step, *run.damaged})) if steps is None else steps
        readable = [step for step, found in by_step.items() if found]
        base: dict[int, int] = {}
        if kind == UPDATES:
            base = {
                t: s
                for t, s in choose_base("window", window, at, readable, run.steps).items()
                if s < t
            }
            at = tuple(base) if steps is None else at
        units = plan_units(components, kind, modules[kind, split], run.model)
        references = compared.references(run, kind, split, at, readable, steps is not None)
        paired = [(unit, references) for unit in units]
        if compared.across and kind != UPDATES:
            paired += between_layers(units, at)
        items += [
            WorkItem(
                run,
                unit,
                kind,
                split,
                at,
                base,
                references,
                compared.other,
                compared.draws,
                dense_circuits,
            )
            for unit, references in paired
        ]
    report_omissions(
        run, components, {kind: found for (kind, _), found in modules.items()}, not items
    )
    return items


def _available(
    run: Source, kinds: Sequence[str], splits: Sequence[str]
) -> dict[tuple[str, str | None], dict[int, list[str]]]:
    """(kind, split) -> step -> modules that it holds, [] where they cannot be read, over all steps
    of the run."""
    available: dict[tuple[str, str | None], dict[int, list[str]]] = {}
    for kind in kinds:
        stored = "weights" if kind == UPDATES else kind
        for step in run.steps:
            for split in run.splits(step, stored):
                if split is not None and split not in splits:
                    continue
                by_step = available.setdefault((kind, split), {})
                try:
                    by_step[step] = run.modules(step, stored, split)
                except DamagedError:
                    by_step[step] = []  # reported where the tensors are read
    return available
