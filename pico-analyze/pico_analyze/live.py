"""Measure while a run trains: the observer "analyze" of pico-train's section `observe`.

The results are an analysis like any other, analysis/live/, and equal those of stored snapshots of
the same steps. Each step is written to a small file of its own at once. When these files are an
eighth as many as the steps of the table, they are joined to it and the table is rewritten. So the
table lags by an eighth at most, nothing that was measured is only in memory, and rewriting costs as
much as writing each row nine times, however long the run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pico_contract import names
from pico_contract.codec import write_text
from pico_contract.errors import DamagedError, UserError, did_you_mean
from pico_contract.kinds import SPLITS
from pico_contract.layout import parse_step
from pico_contract.observer import KindSplit, Observation, ObservedRun
from pico_contract.renames import ANALYSIS

from pico_analyze import table
from pico_analyze.components.circuits import UPDATES
from pico_analyze.components.select import check_components, plan_units
from pico_analyze.config.analysis import AnalysisConfig, checked, to_yaml
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.engine.evaluate import metrics_for_kind
from pico_analyze.engine.measure import measure
from pico_analyze.metrics.registry import Metric, resolve
from pico_analyze.sources.live_step import ObservedStep

if TYPE_CHECKING:
    import pandas as pd

OPTIONS = ("name", "metrics", "components", "kinds", "splits", "figures")
"""Keys of `AnalysisConfig` that are options here.

The run chooses the steps, and pairs need two of them.
"""
_SHARE = 8
"""The table is rewritten when one step for this many of its own is waiting."""


def observer(run: ObservedRun, options: Mapping[str, Any]) -> LiveAnalysis:
    """Make the observer "analyze" of a run.

    Options are keys of `OPTIONS` as in the YAML of `pico-analyze run`. By default every metric of
    one step is measured of all that the run observes, into analysis/live/.

    Raises:
        UserError: an unknown option, metric, kind, split or component (with the nearest); a metric
            of a pair of steps; a kind that the run does not observe; nothing to measure.
    """
    options = ANALYSIS.current(options, "analyze")
    for key in options:
        if key in AnalysisConfig.model_fields and key not in OPTIONS:
            raise UserError(
                f'"{key}" is not an option while a run trains; choose from: {", ".join(OPTIONS)}'
            )
    config = checked({"name": "live", **options, "run": str(run.layout.root)}, "analyze")
    metrics = _of_one_step(config)
    components = config.components
    possible = list(run.modules)
    if run.low_rank:
        # Any module may have factors: which ones do is known when they are observed.
        possible += [names.lora_B(module).removesuffix(".weight") for module in run.modules]
    if components is not None:
        check_components(components, possible)
    measured = []
    for kind, split in _asked_for(run, config):
        if metrics_for_kind(kind, metrics) and plan_units(
            components, kind, possible, run.model
        ):
            measured.append((kind, split))
    if not measured:
        raise UserError("nothing to measure: no such metric of such kinds and components")
    return LiveAnalysis(run, config, list(metrics), measured)


def _of_one_step(config: AnalysisConfig) -> dict[str, Metric]:
    chosen = resolve(config.metrics)
    pairs = [name for name, metric in chosen.items() if metric.arity == 2]
    if config.metrics is not None and pairs:
        raise UserError(
            f'metrics: "{pairs[0]}" compares two steps, of which only one is there while a run trains; store snapshots'
            " and measure it afterwards with pico-analyze run"
        )
    return {name: metric for name, metric in chosen.items() if metric.arity == 1}


def _asked_for(run: ObservedRun, config: AnalysisConfig) -> list[KindSplit]:
    kinds = [kind for kind, _ in run.available]
    for kind in config.kinds or ():
        if kind == UPDATES:
            raise UserError(
                "kinds: updates are differences between two steps, of which only one is there"
            )
        if kind not in kinds:
            raise UserError(
                f"kinds: the run observes no {kind} (snapshot.kinds){did_you_mean(kind, set(kinds))}"
            )
    asked_kinds = config.kinds or kinds
    asked_splits = (None, *(config.splits or SPLITS))
    return [
        (kind, split)
        for kind, split in run.available
        if kind in asked_kinds and split in asked_splits
    ]


class LiveAnalysis:
    """The observer that measures each step into one table; see `pico_contract.observer`.

    A step that was measured waits in a file of its own until it is joined to the table.
    """

    def __init__(
        self,
        run: ObservedRun,
        config: AnalysisConfig,
        metrics: list[str],
        measured: list[KindSplit],
    ) -> None:
        """Measure `metrics` of the kinds and splits in `measured`, as `config` asks."""
        self._run = run
        self._config = config
        self._metrics = metrics
        self._measured = measured
        self._layout = run.layout.analysis(config.name)
        self._table_steps: set[int] = set()
        self._waiting: set[int] = set()

    @property
    def results(self) -> Path:
        """The directory analysis/live/ of the run."""
        return self._layout.root

    def resume(self, step: int) -> None:
        """Drop the results of steps after `step`, and join the rest to one table."""
        write_text(self._layout.config, to_yaml(self._config))
        for part_step, path in self._parts():
            if part_step > step:
                path.unlink()
        paths = [self._layout.table] if self._layout.table.is_file() else []
        readable = list(_readable(paths))
        frame = readable[0] if readable else table.from_rows(())
        self._join(table.until(frame, step))

    def observe(self, observation: Observation) -> None:
        """Measure one step."""
        if not any(part in observation.tensors for part in self._measured):
            return  # after the last update there are no gradients or activations of training
        frame = measure(
            ObservedStep(self._run, observation),
            self._metrics,
            self._config.components,
            kinds=list(dict.fromkeys(kind for kind, _ in self._measured)),
            splits=self._config.splits,
        )
        # On disk first: a kill after this line loses nothing.
        table.write_part(frame, self._layout.part(observation.step))
        self._waiting.add(observation.step)
        if _SHARE * len(self._waiting) >= len(self._table_steps):
            self._catch_up()

    def close(self) -> None:
        """Bring the table up to date."""
        self._catch_up()

    def _catch_up(self) -> None:
        if self._waiting:
            frame = table.read(self._layout.table) if self._table_steps else table.from_rows(())
            self._join(frame)

    def _join(self, frame: pd.DataFrame) -> None:
        """Write the table of `frame` and the parts, then remove the parts.

        In this order a kill at any moment loses no row.
        """
        paths = [path for _, path in self._parts()]
        whole = table.with_steps_of(frame, list(_readable(paths)))
        if len(whole) or self._layout.table.is_file():
            table.write(whole, self._layout)
        for path in paths:
            path.unlink()
        self._table_steps = set(whole["step"])
        self._waiting = set()

    def _parts(self) -> list[tuple[int, Path]]:
        parts = []
        for path in self._layout.parts.glob("*"):
            step = parse_step(path.stem)
            if step is not None:
                parts.append((step, path))
        return sorted(parts)


def _readable(paths: Sequence[Path]) -> Iterator[pd.DataFrame]:
    """Yield the tables that can be read, and warn of the others."""
    for path in paths:
        try:
            yield table.read(path)
        except DamagedError as error:
            warnings.warn(
                f"what was measured before is left out in part: {error}",
                DamagedWarning,
                stacklevel=3,
            )
