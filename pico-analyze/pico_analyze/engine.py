"""measure(): what was asked -> work items -> numbers -> table. A work item is one unit of one kind at all steps.

Going module by module rather than step by step keeps one reference in memory at a time and lets the decompositions of
all steps of a module run as one batch.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pico_contract.errors import DamagedError, UserError, did_you_mean

from pico_analyze.cache import Cache, merged, pending
from pico_analyze.components import UPDATES, check, fitting, plan
from pico_analyze.item import Numbers, Result, measure_item, rows
from pico_analyze.metrics import Metric, resolve
from pico_analyze.reading import Work
from pico_analyze.selection import Steps, choose_base, choose_steps
from pico_analyze.sources import KINDS, SPLITS, Source
from pico_analyze.table import from_rows

if TYPE_CHECKING:
    import pandas as pd

COMPONENTS = ("*_proj", "ov_circuit")
Todo = tuple[int, Work, Mapping[str, Metric]]
"""A work item by its place, with the steps and the metrics that are still to be measured."""


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
    *,
    window: str | int = "previous",
    cache: Path | None = None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Compute metrics of a run's components over steps, as the tidy table of `pico_analyze.table`.

    Args:
        metrics: names of `METRICS`, functions of a float64 tensor, or `module:attribute`; all of METRICS by default.
        components: globs over module names, and circuits (`CIRCUITS`); "*_proj" and "ov_circuit" by default, every
            module of a model that calls none of its own so.
        steps: a list, or {start, end, step} (inclusive, never beyond `end`); by default those that hold the kind.
        kinds: of weights, gradients, activations, microbatch_gradients (these by default, of what the run holds), and
            updates: W(t) less W(s), s from `window`.
        splits: of train, val; all by default.
        reference: the step that similarities are taken to: "first" or "last" of those that hold the kind, "previous"
            (for each step the one before it that does), or a number.
        progress: called with (work items done, all).
        window: the step s at which the window of an update begins, as `reference`; an update needs s < t.
        cache: a directory in which results are kept by content: what was measured of the same files by the same code
            is read from it. Nothing is kept by default.
        executor: of concurrent.futures, or with its interface (`dask.distributed.Client().get_executor()`), on whose
            workers the source's files can be opened; threads of this process by default.

    Combinations that mean nothing are left out: spectral metrics of vectors, entries of a circuit, similarities of
    anything but activations. What a step lacks has status `missing`.

    Raises:
        UserError: an unknown metric, component, kind, split or step (with the nearest), an empty list, or nothing to
            measure.

    Warns:
        DamagedWarning: once for each part of the run that is not readable; its rows have status `missing`.
    """
    _refuse_empty(metrics=metrics, components=components, steps=steps, kinds=kinds, splits=splits)
    chosen = resolve(metrics)
    kinds = _known("kind", kinds or KINDS, (*KINDS, UPDATES))
    splits = _known("split", splits or SPLITS, SPLITS)
    at = choose_steps(steps, sorted({*run.steps, *run.damaged}))
    for step in at:
        for sentence in run.damaged.get(step, ()):
            warnings.warn(f"step {step} is left out in part: {sentence}", DamagedWarning, stacklevel=2)
    items = _work(run, components, None if steps is None else at, kinds, splits, reference, window)
    with pool() if executor is None else contextlib.nullcontext(executor) as workers:
        numbers, damages = _measured(items, chosen, workers, None if cache is None else Cache(cache, run), progress)
    for sentence in dict.fromkeys(damages):
        warnings.warn(sentence, DamagedWarning, stacklevel=2)
    frame = from_rows(chain(*(rows(item, chosen, at) for item, at in zip(items, numbers, strict=True))))
    if frame.empty:
        raise UserError(f'nothing to measure in run "{run.name}": no such metric of such kinds and components')
    return frame


@contextlib.contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, each computing with one.

    Decompositions of a model's matrices are too small to be split: where other processes keep the cores busy, one of
    128 x 128 took 200 ms on 2 threads and 2.5 ms on one. Several at a time use the cores instead.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
            yield executor
    finally:
        torch.set_num_threads(threads)


def _measured(
    items: Sequence[Work],
    metrics: Mapping[str, Metric],
    workers: Executor,
    cache: Cache | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[int, Numbers]], list[str]]:
    """The numbers of each work item, and a sentence for each step that could not be read.

    What is not kept is given to the workers, and kept as soon as it is there: a kill loses what was under way.
    """
    parts: list[list[Mapping[int, Numbers]]] = [[cache.known(item, metrics) if cache else {}] for item in items]
    todo: list[Todo] = [
        (index, replace(item, steps=steps), lacking)
        for index, item in enumerate(items)
        for steps, lacking in pending(item, metrics, parts[index][0])
    ]
    turns = _turns(todo, getattr(items[0].source, "at_once", None) if items else None)
    total = sum(map(len, turns))
    damages: dict[int, list[str]] = {}
    with contextlib.closing(_results(turns, workers)) as results:
        for done, (index, item, result) in enumerate(results, start=1):
            if cache:
                cache.keep(item, metrics, result)
            parts[index].append(result.at)
            damages.setdefault(index, []).extend(result.damages.values())
            if progress:
                progress(done, total)
    return [merged(found) for found in parts], list(chain(*(damages[index] for index in sorted(damages))))


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
    reference: str | int,
    window: str | int,
) -> list[Work]:
    """Work items; without `steps` each kind is measured at the steps that hold it, and at those that are damaged."""
    held = _holdings(run, kinds, splits)
    if not held:
        raise UserError(f'run "{run.name}" has no intact {" or ".join(kinds)} (of split {" or ".join(splits)}) to read')
    modules = {of: list(dict.fromkeys(chain(*by_step.values()))) for of, by_step in held.items()}
    every = list(dict.fromkeys(chain(*modules.values())))
    components = components or (COMPONENTS if fitting(COMPONENTS[0], every) else ["*"])
    check(components, every)
    items = []
    for (kind, split), by_step in held.items():
        at = tuple(sorted({*by_step, *run.damaged})) if steps is None else steps
        readable = [step for step, found in by_step.items() if found]
        if kind == UPDATES:
            base = {t: s for t, s in choose_base("window", window, at, readable, run.steps).items() if s < t}
            at = tuple(base) if steps is None else at
        else:
            base = choose_base("reference", reference, at, readable, run.steps)
        items += [
            Work(run, unit, kind, split, at, base) for unit in plan(components, kind, modules[kind, split], run.model)
        ]
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
