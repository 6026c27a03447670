"""The public function `measure`: from a request to a table.

Read the engine in the order in which a request passes through it:

- `measure`: check the arguments and call the steps below.
- `plan`: split the request into work items; `steps` and `references` choose what is compared.
- `execute`: measure the items on workers; `cache` keeps their results.
- `evaluate`: measure one item; `loader` reads its matrices, `inputs` derives from them.

A work item is one unit (a module, or a layer's circuit) of one kind at all steps. Measuring unit by
unit rather than step by step bounds the memory that references take, and the decompositions of
several steps run as one batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pico_contract.errors import UserError
from pico_contract.kinds import KINDS, SPLITS

from pico_analyze.engine.cache import ResultCache
from pico_analyze.engine.damage import Damage, warn_damaged
from pico_analyze.engine.evaluate import Numbers, Row, table_rows
from pico_analyze.engine.execute import execute, pool
from pico_analyze.engine.plan import Request, plan_work
from pico_analyze.engine.references import ReferenceChoice, comparison
from pico_analyze.engine.references import check_comparison as check_comparison
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
    *,
    steps: Steps = None,
    kinds: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    reference: ReferenceChoice = None,
    window: str | int = "previous",
    null_draws: int = 0,
    dense_circuits: bool = False,
    cache: Path | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Compute metrics of a run's components over steps, as the tidy table of `pico_analyze.table`.

    Args:
        metrics: names of `METRICS`, functions of a float64 tensor, or `module:attribute`.
        components: globs over module names, and circuits; by default those that `plan` names.
        steps: a list, or {start, end, step} with both ends included; by default all of each kind.
        kinds: some of `KINDS` (by default all of them), and updates, W(t) - W(s).
        splits: train, val or both; by default both.
        reference: the other member of each similarity, see `ReferenceChoice`; by default "last".
        window: the step s at which updates begin: "first", "previous" or a number; always s < t.
        null_draws: the draws of a permutation null for each similarity of samples; 0 for none.
        dense_circuits: also measure entries of circuits, which needs their D x D matrices.
        cache: a directory of results that are reused while code and files stay the same.
        executor: of concurrent.futures or like it; its workers open the files of `run`.
        progress: called with the number of work items done and of all.

    Raises:
        UserError: an unknown name or step (with the nearest), an empty list, nothing to measure.

    Warns:
        DamagedWarning, OmittedWarning: once for each unreadable part or lacking circuit.
    """
    choices = {"metrics": metrics, "components": components, "steps": steps}
    _refuse_empty(choices | {"kinds": kinds, "splits": splits})
    chosen = resolve(metrics)
    request = Request(
        run=run,
        components=components,
        steps=steps,
        kinds=kinds or KINDS,
        splits=splits or SPLITS,
        comparison=comparison(reference),
        window=window,
        null_draws=null_draws,
        dense_circuits=dense_circuits,
    )
    items = plan_work(request)
    check_comparison(items, chosen)
    store = ResultCache(cache, run) if cache else None
    # An executor that the caller brought is the caller's to shut down.
    with pool() if executor is None else contextlib.nullcontext(executor) as workers:
        numbers, damage, sentences = execute(items, chosen, workers, store, progress)
    warn_damaged(sentences)
    return _table(run.name, items, chosen, numbers, damage)


def _refuse_empty(arguments: Mapping[str, Sequence[Any] | Mapping[str, int] | None]) -> None:
    for name, argument in arguments.items():
        if argument is not None and len(argument) == 0:
            raise UserError(f"{name} is empty: name some, or leave it out for the default")


def _table(
    run: str,
    items: Sequence[WorkItem],
    metrics: Mapping[str, Metric],
    numbers: Sequence[Mapping[Cell, Numbers]],
    damage: Mapping[int, Damage],
) -> pd.DataFrame:
    """The numbers of all items as one table, whose rows follow the order of the items."""

    def every_row() -> Iterator[Row]:
        for index, item in enumerate(items):
            lost = damage.get(index, Damage()).with_damaged_directories(item)
            yield from table_rows(item, metrics, numbers[index], lost)

    frame = from_rows(every_row())
    if frame.empty:
        raise UserError(
            f'nothing to measure in run "{run}": no such metric of such kinds and components'
        )
    return frame
