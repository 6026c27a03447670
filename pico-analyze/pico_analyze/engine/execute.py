"""Execute work items on workers, reading and keeping results in the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import chain, groupby

import torch

from pico_analyze.engine.cache import ResultCache, merge_numbers, pending_parts
from pico_analyze.engine.damage import Damage
from pico_analyze.engine.evaluate import Numbers, Result, measure_item
from pico_analyze.engine.work import Cell, WorkItem
from pico_analyze.metrics.registry import Metric

PendingItem = tuple[int, WorkItem, Mapping[str, Metric]]
"""A work item by its place, with the steps and the metrics that are still to be measured."""


@contextlib.contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, each computing with one.

    Decompositions of a model's matrices are too small to be split: where other processes keep the
    cores busy, one of 128 x 128 took 200 ms on 2 threads and 2.5 ms on one. Several at a time use
    the cores instead.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    executor = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)  # else an interruption waits for the whole queue
        torch.set_num_threads(threads)


def execute(
    items: Sequence[WorkItem],
    metrics: Mapping[str, Metric],
    workers: Executor,
    cache: ResultCache | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[Cell, Numbers]], dict[int, Damage], list[str]]:
    """The numbers of each work item, what was damaged of it, and a sentence for each step that
    could not be read.

    What is not kept is given to the workers, and kept as soon as it is there: a kill loses what was
    under way.
    """
    parts: list[list[Mapping[Cell, Numbers]]] = [
        [cache.known(item, metrics) if cache else {}] for item in items
    ]
    todo: list[PendingItem] = [
        (index, part, lacking)
        for index, item in enumerate(items)
        for part, lacking in pending_parts(item, metrics, parts[index][0])
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
            sentences.setdefault(index, []).extend(
                (result.damages | result.gaps | result.lost).values()
            )
            damage[index] = damage.get(index, Damage()).with_steps(result.damages, result.lost)
            if progress:
                progress(done, total)
    listed = list(chain(*(sentences[index] for index in sorted(sentences))))
    return [merge_numbers(found) for found in parts], damage, listed


def _turns(todo: list[PendingItem], at_once: int | None) -> list[list[PendingItem]]:
    """One turn; where the files of only `at_once` steps fit on the disk, one of these steps, one of
    the next."""
    if at_once is None:
        return [todo]
    turn_of = {
        step: rank // at_once
        for rank, step in enumerate(sorted({s for _, item, _ in todo for s in item.steps}))
    }
    turns: dict[int, list[PendingItem]] = {turn: [] for turn in turn_of.values()}
    for index, item, lacking in todo:
        for turn, steps in groupby(item.steps, turn_of.__getitem__):
            turns[turn].append((index, replace(item, steps=tuple(steps)), lacking))
    return list(turns.values())


def _results(
    turns: list[list[PendingItem]], workers: Executor
) -> Generator[tuple[int, WorkItem, Result], None, None]:
    """Results as they come; a turn begins when the one before it has ended."""
    for turn in turns:
        futures = {
            workers.submit(_with_one_thread, item, lacking): (index, item)
            for index, item, lacking in turn
        }
        try:
            for future in as_completed(futures):
                index, item = futures.pop(future)
                yield index, item, future.result()
        finally:
            for future in futures:
                future.cancel()


def _with_one_thread(item: WorkItem, metrics: Mapping[str, Metric]) -> Result:
    """`measure_item` as `pool` has it, wherever it runs: several items at a time use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure_item(item, metrics)
    finally:
        torch.set_num_threads(threads)
