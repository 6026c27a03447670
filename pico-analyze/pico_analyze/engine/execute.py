"""Execute work items on workers; results that the cache has are read from there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import chain, groupby
from typing import NamedTuple

import torch

from pico_analyze.engine.cache import ResultCache, merge_numbers, pending_parts
from pico_analyze.engine.damage import Damage
from pico_analyze.engine.evaluate import Numbers, Result, measure_item
from pico_analyze.engine.work import Cell, WorkItem
from pico_analyze.metrics.registry import Metric


class PendingItem(NamedTuple):
    """A part of a work item that is still to be measured, with the metrics that it lacks."""

    position: int  # of the work item among all
    part: WorkItem
    metrics: Mapping[str, Metric]


@contextlib.contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """Open a pool of as many workers as torch has threads, each computing with one thread.

    Decompositions of a model's matrices are too small to be split: on busy cores, one of 128 x 128
    took 200 ms on 2 threads and 2.5 ms on one. Several at a time use the cores instead.
    """
    threads = torch.get_num_threads()
    # The calling thread would otherwise start more threads than there are cores.
    torch.set_num_threads(1)
    executor = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield executor
    finally:
        # Without cancelling, an interruption would wait for the whole queue.
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def execute(
    items: Sequence[WorkItem],
    metrics: Mapping[str, Metric],
    workers: Executor,
    cache: ResultCache | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[Cell, Numbers]], dict[int, Damage], list[str]]:
    """Measure work items, and cache each result as it arrives, so that a kill loses little.

    Returns:
        The numbers of each item; the damage of each, by its position; and a sentence for each step
        that could not be read.
    """
    parts: list[list[Mapping[Cell, Numbers]]] = []
    todo: list[PendingItem] = []
    for index, item in enumerate(items):
        known = cache.known(item, metrics) if cache else {}
        parts.append([known])
        for part, lacking in pending_parts(item, metrics, known):
            todo.append(PendingItem(index, part, lacking))
    # All items have the same source.
    at_once = getattr(items[0].source, "at_once", None) if items else None
    turns = _turns(todo, at_once)
    total = sum(map(len, turns))
    sentences: dict[int, list[str]] = {}
    damage: dict[int, Damage] = {}
    with contextlib.closing(_results(turns, workers)) as results:
        for done, (index, item, result) in enumerate(results, start=1):
            if cache:
                cache.keep(item, metrics, result)
            parts[index].append(result.at)
            reasons = result.damages | result.gaps | result.lost
            sentences.setdefault(index, []).extend(reasons.values())
            damage[index] = damage.get(index, Damage()).with_steps(result.damages, result.lost)
            if progress:
                progress(done, total)
    # Results arrive in any order; the sentences are listed in that of the items.
    in_order = [sentences[index] for index in sorted(sentences)]
    numbers = [merge_numbers(item_parts) for item_parts in parts]
    return numbers, damage, list(chain(*in_order))


def _turns(todo: list[PendingItem], at_once: int | None) -> list[list[PendingItem]]:
    """Cut the work into turns of `at_once` steps, whose files fit on the disk together.

    All work is one turn if there is no such limit (None).
    """
    if at_once is None:
        return [todo]
    steps: set[int] = set()
    for pending_part in todo:
        steps.update(pending_part.part.steps)
    turn_of = {}
    for rank, step in enumerate(sorted(steps)):
        turn_of[step] = rank // at_once
    turns: dict[int, list[PendingItem]] = {}
    for turn in turn_of.values():
        turns[turn] = []
    for position, part, metrics in todo:
        # Steps ascend, so those of one turn are neighbours.
        for turn, steps_of_turn in groupby(part.steps, turn_of.__getitem__):
            smaller = replace(part, steps=tuple(steps_of_turn))
            turns[turn].append(PendingItem(position, smaller, metrics))
    return list(turns.values())


def _results(
    turns: list[list[PendingItem]], workers: Executor
) -> Generator[tuple[int, WorkItem, Result], None, None]:
    """Yield results as they arrive; a turn begins when the one before it has ended."""
    for turn in turns:
        futures = {}
        for index, item, lacking in turn:
            futures[workers.submit(_with_one_thread, item, lacking)] = (index, item)
        try:
            for future in as_completed(futures):
                # Popped, so that a result is freed when the caller is done with it.
                index, item = futures.pop(future)
                yield index, item, future.result()
        finally:
            # After an error or an interruption, what has not begun never begins.
            for future in futures:
                future.cancel()


def _with_one_thread(item: WorkItem, metrics: Mapping[str, Metric]) -> Result:
    """Call `measure_item` with one thread of torch, also in workers that `pool` did not start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure_item(item, metrics)
    finally:
        torch.set_num_threads(threads)
