"""Measuring while a run trains: the observer "analyze" of pico-train's section `observe`.

The results are an analysis like any other, analysis/live/, and equal what is measured of stored
snapshots of the same steps. Each step is one small file when it was measured; those are joined to
the table, which is rewritten as a whole, when they are an eighth as many as its steps. So the table
lags by an eighth at most, everything is on disk as soon as it was measured, and all of the
rewriting costs as much as writing each row nine times, however long the run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
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
"""Keys of `AnalysisConfig` that are options here: steps are the run's to choose, and pairs are for
later."""
_SHARE = 8


def observer(run: ObservedRun, options: Mapping[str, Any]) -> LiveAnalysis:
    """The observer "analyze" of `run`.

    `options` are those of `OPTIONS`, as in the YAML of `pico-analyze run`: by default every metric
    of one step, of all that the run observes, into analysis/live/.

    Raises:
        UserError: an unknown option, metric, kind, split or component (with the nearest); a metric
            of a pair of steps; a kind that the run does not observe; nothing to measure.
    """
    options = ANALYSIS.current(options, "analyze")
    for key in options:
        if key in AnalysisConfig.model_fields and key not in OPTIONS:
            raise UserError(
                f'"{key}" is no option while a run trains; choose from: {", ".join(OPTIONS)}'
            )
    config = checked({"name": "live", **options, "run": str(run.layout.root)}, "analyze")
    metrics = _of_one_step(config)
    components = config.components
    factors = (
        [names.lora_B(module).removesuffix(".weight") for module in run.modules]
        if run.low_rank
        else []
    )
    possible = [*run.modules, *factors]  # which modules have factors shows when they are observed
    if components is not None:
        check_components(components, possible)
    held = [
        (kind, split)
        for kind, split in _asked_for(run, config)
        if metrics_for_kind(kind, metrics) and plan_units(components, kind, possible, run.model)
    ]
    if not held:
        raise UserError("nothing to measure: no such metric of such kinds and components")
    return LiveAnalysis(run, config, list(metrics), held)


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
    splits = (None, *(config.splits or SPLITS))
    return [
        (kind, split)
        for kind, split in run.available
        if kind in (config.kinds or kinds) and split in splits
    ]


class LiveAnalysis:
    """Measures each observation, and keeps the table of them all; see
    `pico_contract.observer.LiveObserver`."""

    def __init__(
        self, run: ObservedRun, config: AnalysisConfig, metrics: list[str], held: list[KindSplit]
    ) -> None:
        self._run, self._config, self._metrics, self._held = run, config, metrics, held
        self._layout = run.layout.analysis(config.name)
        self._steps: set[int] = set()
        self._waiting: set[int] = set()

    @property
    def results(self) -> Path:
        """analysis/live/ of the run."""
        return self._layout.root

    def resume(self, step: int) -> None:
        """Drop what was measured beyond `step`, and join the rest to one table."""
        write_text(self._layout.config, to_yaml(self._config))
        for beyond, path in self._parts():
            if beyond > step:
                path.unlink()
        before = list(_readable([self._layout.table] if self._layout.table.is_file() else []))
        self._join(table.until(before[0] if before else table.from_rows(()), step))

    def observe(self, observation: Observation) -> None:
        """Measure one step."""
        if not any(held in observation.tensors for held in self._held):
            return  # after the last update there is nothing of training
        frame = measure(
            ObservedStep(self._run, observation),
            self._metrics,
            self._config.components,
            kinds=list(dict.fromkeys(kind for kind, _ in self._held)),
            splits=self._config.splits,
        )
        table.write_part(frame, self._layout.part(observation.step))
        self._waiting.add(observation.step)
        if _SHARE * len(self._waiting) >= len(self._steps):
            self._catch_up()

    def close(self) -> None:
        """Bring the table up to date."""
        self._catch_up()

    def _catch_up(self) -> None:
        if self._waiting:
            self._join(table.read(self._layout.table) if self._steps else table.from_rows(()))

    def _join(self, frame: pd.DataFrame) -> None:
        """Write the table of `frame` and the parts, then remove the parts: whatever ends it, no row
        is in neither."""
        parts = self._parts()
        whole = table.with_steps_of(frame, list(_readable(path for _, path in parts)))
        if len(whole) or self._layout.table.is_file():
            table.write(whole, self._layout)
        for _, path in parts:
            path.unlink()
        self._steps, self._waiting = set(whole["step"]), set()

    def _parts(self) -> list[tuple[int, Path]]:
        found = [(parse_step(path.stem), path) for path in self._layout.parts.glob("*")]
        return sorted((step, path) for step, path in found if step is not None)


def _readable(paths: Iterator[Path] | list[Path]) -> Iterator[pd.DataFrame]:
    for path in paths:
        try:
            yield table.read(path)
        except DamagedError as error:
            warnings.warn(
                f"what was measured before is left out in part: {error}",
                DamagedWarning,
                stacklevel=3,
            )
