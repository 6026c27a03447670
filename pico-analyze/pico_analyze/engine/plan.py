"""Plan a request: check it and split it into work items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

Part = tuple[str, str | None]
"""A kind of tensor and the split of the data that it comes from; None for weights."""


@dataclass(frozen=True)
class Request:
    """The arguments of `measure` that decide which matrices are read and compared."""

    run: Source
    components: Sequence[str] | None
    steps: Steps
    kinds: Sequence[str]
    splits: Sequence[str]
    comparison: Comparison
    window: str | int
    null_draws: int
    dense_circuits: bool

    def __post_init__(self) -> None:
        _check_known("kind", self.kinds, (*KINDS, UPDATES))
        _check_known("split", self.splits, SPLITS)
        draws = self.null_draws
        is_count = isinstance(draws, int) and not isinstance(draws, bool)
        if not is_count or (draws != 0 and draws < 2):
            raise UserError(f"null_draws should be an integer of at least 2 but is {draws}")


def _check_known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f'there is no {what} "{name}"{did_you_mean(name, known)}')


def plan_work(request: Request) -> list[WorkItem]:
    """Split a request into work items, and warn of damage and of circuits that the model lacks."""
    run = request.run
    steps = choose_steps(request.steps, sorted({*run.steps, *run.damaged}))
    # The level is the distance to the caller of `measure`, whose line the warning names.
    warn_damaged(_damage(request, steps), level=4)
    available = _available(request)
    if not available:
        kinds, splits = " or ".join(request.kinds), " or ".join(request.splits)
        raise UserError(f'run "{run.name}" has no intact {kinds} (of split {splits}) to read')
    modules = {part: _union(by_step.values()) for part, by_step in available.items()}
    if request.components is not None:
        check_components(request.components, _union(modules.values()))
    items: list[WorkItem] = []
    asked_steps = None if request.steps is None else steps
    for part, by_step in available.items():
        items += _plan_part(request, part, modules[part], by_step, asked_steps)
    by_kind = {kind: names for (kind, _), names in modules.items()}
    report_omissions(run, request.components, by_kind, not items)
    return items


def _damage(request: Request, steps: Sequence[int]) -> Iterator[str]:
    """Yield a sentence for each directory of `steps` that is damaged, in either run."""
    other = request.comparison.other
    for source in [request.run] if other is None else [request.run, other]:
        for step in steps:
            for sentence in source.damaged.get(step, ()):
                yield f"step {step} is left out in part: {sentence}"


def _available(request: Request) -> dict[Part, dict[int, list[str]]]:
    """Map each kind and split to its steps, and each step to the modules that it stores.

    A file that cannot be read counts as one without modules; it is reported when its tensors are
    read.
    """
    run = request.run
    available: dict[Part, dict[int, list[str]]] = {}
    for kind in request.kinds:
        stored = "weights" if kind == UPDATES else kind
        for step in run.steps:
            for split in run.splits(step, stored):
                if split is not None and split not in request.splits:
                    continue
                by_step = available.setdefault((kind, split), {})
                try:
                    by_step[step] = run.modules(step, stored, split)
                except DamagedError:
                    by_step[step] = []
    return available


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    """Each name once, in the order in which they first occur."""
    return list(dict.fromkeys(chain(*lists)))


def _plan_part(
    request: Request,
    part: Part,
    modules: Sequence[str],
    by_step: Mapping[int, Sequence[str]],
    asked_steps: tuple[int, ...] | None,
) -> Iterator[WorkItem]:
    """The work items of one kind and split.

    Without `asked_steps` these are the steps that store the kind, and those that are damaged: what
    they would have stored is unknown, and their rows say so.
    """
    run, comparison = request.run, request.comparison
    kind, split = part
    steps = asked_steps or tuple(sorted({*by_step, *run.damaged}))
    readable = [step for step, names in by_step.items() if names]
    base: dict[int, int] = {}
    if kind == UPDATES:
        starts = choose_base("window", request.window, steps, readable, run.steps)
        # A step at or before the start of its window has no update.
        base = {step: start for step, start in starts.items() if start < step}
        steps = asked_steps or tuple(base)
    is_asked = asked_steps is not None
    references = comparison.references(run, kind, split, steps, readable, is_asked)
    units = plan_units(request.components, kind, modules, run.model)
    planned = [(unit, references) for unit in units]
    if comparison.is_between_layers and kind != UPDATES:
        # The units above still measure each layer alone.
        planned += between_layers(units, steps)
    for unit, compared in planned:
        yield WorkItem(
            source=run,
            unit=unit,
            kind=kind,
            split=split,
            steps=steps,
            base=base,
            references=compared,
            other=comparison.other,
            draws=request.null_draws,
            dense_circuits=request.dense_circuits,
        )
