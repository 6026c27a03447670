"""measure(): what was asked -> work items -> numbers -> table. A work item is one unit of one kind
at all steps.

Going module by module rather than step by step keeps one reference in memory at a time and lets the
decompositions of all steps of a module run as one batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pico_contract.errors import UserError

from pico_analyze.engine.cache import ResultCache
from pico_analyze.engine.damage import Damage, warn_damaged
from pico_analyze.engine.evaluate import Numbers, table_rows
from pico_analyze.engine.execute import execute, pool
from pico_analyze.engine.plan import plan_work
from pico_analyze.engine.references import check_comparison as check_comparison
from pico_analyze.engine.references import comparison
from pico_analyze.engine.steps import Steps
from pico_analyze.engine.work import Cell, WorkItem
from pico_analyze.metrics.registry import Metric, resolve
from pico_analyze.sources.base import Source
from pico_analyze.table import from_rows

if TYPE_CHECKING:
    import pandas as pd


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
    dense_circuits: bool = False,
    cache: Path | None = None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Compute metrics of a run's components over steps, as the tidy table of `pico_analyze.table`.

    Args:
        metrics: names of `METRICS`, functions of a float64 tensor, or `module:attribute`; all of
            METRICS by default.
        components: globs over module names, and circuits; by default those that `plan` names.
        steps: a list, or {start, end, step} (inclusive, never beyond `end`); by default those that
            hold the kind.
        kinds: of `KINDS` (all of them by default), and updates: W(t) less W(s), s from `window`.
        splits: of train, val; all by default.
        reference: what similarities are taken to: "first" or "last" (the default) of the steps that
            hold the kind, "previous" (the one before each), a number, or "all": for each of `steps`
            every earlier one.
        reference_run: another run, of which `reference` is then "same" (the default: the step of
            the same number, left out where it is lacking and `steps` does not ask for it), "first",
            "last" or a number.
        across: "layers" for similarities of each layer to every earlier one of the same step
            instead. Circuits are left out, since heads do not correspond across layers.
        null: "permutation" for `null_mean`, `null_sd` and `p` of each similarity of samples, over
            `null_draws` orders of the reference's probe rows (all positions of one together),
            seeded by what is compared; it costs as many.
        progress: called with (work items done, all).
        window: the step s at which the window of an update begins, as `reference`; an update needs
            s < t.
        dense_circuits: also measure entries of circuits (Gini, ...), for which their matrices, D x D
            a head, are formed.
        cache: a directory where results are kept, read where the same code measured the same files;
            by default none.
        executor: of concurrent.futures, or with its interface
            (`dask.distributed.Client().get_executor()`), on whose workers the source's files can be
            opened; threads of this process by default.

    Of a pair the reference is y of a metric, the step or layer itself x. Combinations that mean
    nothing are left out, such as spectral metrics of vectors. What a step lacks has status
    `missing`.

    Raises:
        UserError: a name or step that is not known (with the nearest), an empty list, or nothing to
            measure.

    Warns:
        DamagedWarning, OmittedWarning: once for each part that cannot be read or was altered, or
            lacks a circuit.
    """
    _refuse_empty(metrics=metrics, components=components, steps=steps, kinds=kinds, splits=splits)
    chosen, compared = (
        resolve(metrics),
        comparison(reference, reference_run, across, null, null_draws),
    )
    items = plan_work(run, components, steps, kinds, splits, compared, window, dense_circuits)
    check_comparison(items, chosen)
    with pool() if executor is None else contextlib.nullcontext(executor) as workers:
        numbers, damage, sentences = execute(
            items, chosen, workers, ResultCache(cache, run) if cache else None, progress
        )
    warn_damaged(sentences)
    return _table(run.name, items, chosen, numbers, damage)


def _table(
    run: str,
    items: Sequence[WorkItem],
    metrics: Mapping[str, Metric],
    numbers: Sequence[Mapping[Cell, Numbers]],
    damage: Mapping[int, Damage],
) -> pd.DataFrame:
    lost = [
        damage.get(index, Damage()).with_damaged_directories(item)
        for index, item in enumerate(items)
    ]
    every = zip(items, numbers, lost, strict=True)
    frame = from_rows(
        chain(*(table_rows(item, metrics, at, damaged) for item, at, damaged in every))
    )
    if frame.empty:
        raise UserError(
            f'nothing to measure in run "{run}": no such metric of such kinds and components'
        )
    return frame


def _refuse_empty(**asked: Sequence[Any] | Mapping[str, int] | None) -> None:
    for name, given in asked.items():
        if given is not None and len(given) == 0:
            raise UserError(f"{name} is empty: name some, or leave it out for the default")
