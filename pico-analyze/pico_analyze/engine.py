"""measure(): what was asked -> work items -> numbers -> table. A work item is one unit of one kind at all steps.

Going module by module rather than step by step keeps one reference in memory at a time and lets the decompositions of
all steps of a module run as one batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pico_contract.errors import DamagedError, UserError, did_you_mean

from pico_analyze.cache import Cache, merged, pending
from pico_analyze.comparison import Comparison, between_layers, comparison
from pico_analyze.comparison import check as check_comparison
from pico_analyze.components import UPDATES, check, plan
from pico_analyze.damage import Damage, warn_of
from pico_analyze.damage import DamagedWarning as DamagedWarning
from pico_analyze.item import Numbers, Result, measure_item, rows
from pico_analyze.metrics import Metric, resolve
from pico_analyze.omissions import report_omissions
from pico_analyze.reading import Place, Work
from pico_analyze.selection import Steps, choose_base, choose_steps
from pico_analyze.sources import KINDS, SPLITS, Source
from pico_analyze.table import from_rows

if TYPE_CHECKING:
    import pandas as pd

Todo = tuple[int, Work, Mapping[str, Metric]]
"""A work item by its place, with the steps and the metrics that are still to be measured."""


def measure(
    run: Source,
    metrics: Sequence[str | Callable[..., Any]] | None = None,
    components: Sequence[str] | None = None,
    steps: Steps = None,
    kinds: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    reference: str | int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    reference_run: Source | None = None,
    across: str | None = None,
    null: str | None = None,
    null_draws: int = 99,
    window: str | int = "previous",
    form_circuits: bool = False,
    cache: Path | None = None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Compute metrics of a run's components over steps, as the tidy table of `pico_analyze.table`.

    Args:
        metrics: names of `METRICS`, functions of a float64 tensor, or `module:attribute`; all of METRICS by default.
        components: globs over module names, and circuits; by default those that `plan` names.
        steps: a list, or {start, end, step} (inclusive, never beyond `end`); by default those that hold the kind.
        kinds: of `KINDS` (all of them by default), and updates: W(t) less W(s), s from `window`.
        splits: of train, val; all by default.
        reference: what similarities are taken to: "first" or "last" (the default) of the steps that hold the kind,
            "previous" (the one before each), a number, or "all": for each of `steps` every earlier one.
        reference_run: another run, of which `reference` is then "same" (the default: the step of the same number, left
            out where it is lacking and `steps` does not ask for it), "first", "last" or a number.
        across: "layers" for similarities of each layer to every earlier one of the same step instead. Circuits are left
            out, since heads do not correspond across layers.
        null: "permutation" for `null_mean`, `null_sd` and `p` of each similarity of samples, over `null_draws` orders
            of the reference's probe rows (all positions of one together), seeded by what is compared; it costs as many.
        progress: called with (work items done, all).
        window: the step s at which the window of an update begins, as `reference`; an update needs s < t.
        form_circuits: also measure entries of circuits (Gini, ...), for which their matrices, D x D a head, are formed.
        cache: a directory where results are kept, read where the same code measured the same files; by default none.
        executor: of concurrent.futures, or with its interface (`dask.distributed.Client().get_executor()`), on whose
            workers the source's files can be opened; threads of this process by default.

    Of a pair the reference is y of a metric, the step or layer itself x. Combinations that mean nothing are left out,
    such as spectral metrics of vectors. What a step lacks has status `missing`.

    Raises:
        UserError: a name or step that is not known (with the nearest), an empty list, or nothing to measure.

    Warns:
        DamagedWarning, OmittedWarning: once for each part that cannot be read or was altered, or lacks a circuit.
    """
    _refuse_empty(metrics=metrics, components=components, steps=steps, kinds=kinds, splits=splits)
    chosen, compared = resolve(metrics), comparison(reference, reference_run, across, null, null_draws)
    items = _asked(run, components, steps, kinds, splits, compared, window, form_circuits)
    check_comparison(items, chosen)
    with pool() if executor is None else contextlib.nullcontext(executor) as workers:
        numbers, damage, sentences = _measured(items, chosen, workers, Cache(cache, run) if cache else None, progress)
    warn_of(sentences)
    return _table(run.name, items, chosen, numbers, damage)


def _table(
    run: str,
    items: Sequence[Work],
    metrics: Mapping[str, Metric],
    numbers: Sequence[Mapping[Place, Numbers]],
    damage: Mapping[int, Damage],
) -> pd.DataFrame:
    lost = [damage.get(index, Damage()).and_lost(item) for index, item in enumerate(items)]
    every = zip(items, numbers, lost, strict=True)
    frame = from_rows(chain(*(rows(item, metrics, at, damaged) for item, at, damaged in every)))
    if frame.empty:
        raise UserError(f'nothing to measure in run "{run}": no such metric of such kinds and components')
    return frame


def _asked(
    run: Source,
    components: Sequence[str] | None,
    steps: Steps,
    kinds: Sequence[str] | None,
    splits: Sequence[str] | None,
    compared: Comparison,
    window: str | int,
    formed: bool,
) -> list[Work]:
    """Work items; warns of each damaged directory of the steps that are asked for, of either run."""
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
    warn_of(damages, 4)
    return _work(run, components, None if steps is None else at, kinds, splits, compared, window, formed)


@contextlib.contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, each computing with one.

    Decompositions of a model's matrices are too small to be split: where other processes keep the cores busy, one of
    128 x 128 took 200 ms on 2 threads and 2.5 ms on one. Several at a time use the cores instead.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    executor = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)  # else an interruption waits for the whole queue
        torch.set_num_threads(threads)


def _measured(
    items: Sequence[Work],
    metrics: Mapping[str, Metric],
    workers: Executor,
    cache: Cache | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[Place, Numbers]], dict[int, Damage], list[str]]:
    """The numbers of each work item, what was damaged of it, and a sentence for each step that could not be read.

    What is not kept is given to the workers, and kept as soon as it is there: a kill loses what was under way.
    """
    parts: list[list[Mapping[Place, Numbers]]] = [[cache.known(item, metrics) if cache else {}] for item in items]
    todo: list[Todo] = [
        (index, part, lacking)
        for index, item in enumerate(items)
        for part, lacking in pending(item, metrics, parts[index][0])
    ]
    turns = _turns(todo, getattr(items[0].source, "at_once", None) if items else None)
    total = sum(map(len, turns))
    sentences: dict[int, list[str]] = {}
    damage: dict[int, Damage] = {}
    with contextlib.closing(_results(turns, workers)) as results:
        for done, (index, item, result) in enumerate(results, start=1):
            if cache:
                cache.keep(item, metrics, result)
            parts[index].append(result.at)
            sentences.setdefault(index, []).extend((result.damages | result.gaps | result.lost).values())
            damage[index] = damage.get(index, Damage()).and_also(result.damages, result.lost)
            if progress:
                progress(done, total)
    listed = list(chain(*(sentences[index] for index in sorted(sentences))))
    return [merged(found) for found in parts], damage, listed


def _turns(todo: list[Todo], at_once: int | None) -> list[list[Todo]]:
    """One turn; where the files of only `at_once` steps fit on the disk, one of these steps, one of the next."""
    if at_once is None:
        return [todo]
    turn_of = {
        step: rank // at_once for rank, step in enumerate(sorted({s for _, item, _ in todo for s in item.steps}))
    }
    turns: dict[int, list[Todo]] = {turn: [] for turn in turn_of.values()}
    for index, item, lacking in todo:
        for turn, steps in groupby(item.steps, turn_of.__getitem__):
            turns[turn].append((index, replace(item, steps=tuple(steps)), lacking))
    return list(turns.values())


def _results(turns: list[list[Todo]], workers: Executor) -> Generator[tuple[int, Work, Result], None, None]:
    """Results as they come; a turn begins when the one before it has ended."""
    for turn in turns:
        futures = {workers.submit(_with_one_thread, item, lacking): (index, item) for index, item, lacking in turn}
        try:
            for future in as_completed(futures):
                index, item = futures.pop(future)
                yield index, item, future.result()
        finally:
            for future in futures:
                future.cancel()


def _with_one_thread(item: Work, metrics: Mapping[str, Metric]) -> Result:
    """`measure_item` as `pool` has it, wherever it runs: several items at a time use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure_item(item, metrics)
    finally:
        torch.set_num_threads(threads)


def _refuse_empty(**asked: Sequence[Any] | Mapping[str, int] | None) -> None:
    for name, given in asked.items():
        if given is not None and len(given) == 0:
            raise UserError(f"{name} is empty: name some, or leave it out for the default")


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
    formed: bool,
) -> list[Work]:
    """Work items; without `steps` each kind is measured at the steps that hold it, and at those that are damaged."""
    held = _holdings(run, kinds, splits)
    if not held:
        raise UserError(f'run "{run.name}" has no intact {" or ".join(kinds)} (of split {" or ".join(splits)}) to read')
    modules = {of: list(dict.fromkeys(chain(*by_step.values()))) for of, by_step in held.items()}
    every = list(dict.fromkeys(chain(*modules.values())))
    if components is not None:
        check(components, every)
    items = []
    for (kind, split), by_step in held.items():
        at = tuple(sorted({*by_step, *run.damaged})) if steps is None else steps
        readable = [step for step, found in by_step.items() if found]
        base: dict[int, int] = {}
        if kind == UPDATES:
            base = {t: s for t, s in choose_base("window", window, at, readable, run.steps).items() if s < t}
            at = tuple(base) if steps is None else at
        units = plan(components, kind, modules[kind, split], run.model)
        references = compared.references(run, kind, split, at, readable, steps is not None)
        paired = [(unit, references) for unit in units]
        if compared.across and kind != UPDATES:
            paired += between_layers(units, at)
        items += [
            Work(run, unit, kind, split, at, base, references, compared.other, compared.draws, formed)
            for unit, references in paired
        ]
    report_omissions(run, components, {kind: found for (kind, _), found in modules.items()}, not items)
    return items


def _holdings(
    run: Source, kinds: Sequence[str], splits: Sequence[str]
) -> dict[tuple[str, str | None], dict[int, list[str]]]:
    """(kind, split) -> step -> modules that it holds, [] where they cannot be read, over all steps of the run."""
    held: dict[tuple[str, str | None], dict[int, list[str]]] = {}
    for kind in kinds:
        stored = "weights" if kind == UPDATES else kind
        for step in run.steps:
            for split in run.splits(step, stored):
                if split is not None and split not in splits:
                    continue
                by_step = held.setdefault((kind, split), {})
                try:
                    by_step[step] = run.modules(step, stored, split)
                except DamagedError:
                    by_step[step] = []  # reported where the tensors are read
    return held
