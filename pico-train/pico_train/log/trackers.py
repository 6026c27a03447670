"""Trackers as mirrors of metrics.jsonl, which is the truth: TensorBoard, Weights & Biases, trackio,
through accelerate.

After a resume from an older step each mirror must tell the history that metrics.jsonl tells.
TensorBoard purges what it has from that step on. Weights & Biases drops whatever lies below its
newest step, and trackio keeps both; so there a run whose rows were taken back goes on as a new
tracker run, `<name>-<n>` of the group `<name>`, which is told the whole history first. A session
that takes nothing back continues the tracker run of the one before.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pico_contract import codec
from pico_contract.errors import UserError, in_one_line
from pico_contract.layout import RunLayout
from pico_contract.schema import Measurement

from pico_train.evaluate.results import scalars, task_scalars

TrackerName = Literal["tensorboard", "wandb", "trackio"]
Say = Callable[[str], None]
Told = tuple[int, dict[str, float]]

_INSTALL = {
    "tensorboard": "pip install 'pico-train[tensorboard]'",
    "wandb": "pip install 'pico-train[wandb]'",
    "trackio": "pip install trackio",
}


def check_trackers(names: Iterable[str]) -> None:
    """Whether what `names` need is installed.

    Raises:
        UserError: a package is missing; how to install it is said.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log.trackers: {name} is not installed: {_INSTALL[name]}")


@dataclass(frozen=True)
class TrackedRun:
    """The run as trackers know it, at the beginning of a session that continues step `start`.

    `id` tells runs of one name apart; `again` says that rows beyond `start` were taken back; `rows`
    are those of metrics.jsonl.
    """

    layout: RunLayout
    name: str
    project: str
    created: str
    config: Mapping[str, Any]
    start: int
    again: bool
    rows: list[dict[str, Any]]

    @property
    def segment(self) -> str:
        """Name of the tracker run: that of the run, with a number once rows were taken back."""
        return f"{self.name}-{self.layout.cuts + 1}" if self.layout.cuts else self.name

    @property
    def id(self) -> str:
        """The same in every session of a segment, and in no other run."""
        return f"{self.segment}-{hashlib.sha256(f'{self.name} {self.created}'.encode()).hexdigest()[:8]}"

    def history(self) -> Iterator[Told]:
        """What was told up to `start`: rows, and evaluations after the row of their step."""
        history = [(row["step"], 0, _numbers(row)) for row in self.rows]
        for step in codec.listed_steps(self.layout.evaluations):
            if step <= self.start:
                history.append((step, 1, scalars(self.layout, step)))
        yield from (
            (step, values) for step, _, values in sorted(history, key=lambda entry: entry[:2])
        )


class Trackers:
    """The trackers of a session. One that fails is named once and left alone; training goes on."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._trackers: dict[str, Any] = {}
        self._known: set[tuple[int, str]] = set()

    def open(self, names: Iterable[str], run: TrackedRun) -> None:
        """Start the trackers called `names`, and bring them to where metrics.jsonl is."""
        # The evaluation of the resumed step is made again, and was told before.
        self._known = {(run.start, key) for key in scalars(run.layout, run.start)}
        for name in names:
            self._safely(name, partial(self._start, name, run))

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl: its numbers, under their names there."""
        self._tell(row["step"], _numbers(row))

    def evaluated(self, step: int, results: Mapping[str, Mapping[str, Measurement]]) -> None:
        """Results of theta_step: `task/metric`, of the whole alone."""
        values = {
            key: value
            for task, metrics in results.items()
            for key, value in task_scalars(task, metrics).items()
        }
        self._tell(
            step, {key: value for key, value in values.items() if (step, key) not in self._known}
        )

    def close(self) -> None:
        """Let each tracker write what it still holds."""
        for name, tracker in list(self._trackers.items()):
            self._safely(name, tracker.finish)
        self._trackers.clear()

    def _start(self, name: str, run: TrackedRun) -> None:
        tracker, is_empty = _STARTERS[name](run)
        tracker.start()
        self._trackers[name] = tracker
        if is_empty:
            for step, values in run.history():
                tracker.log(values, step=step)

    def _tell(self, step: int, values: dict[str, float]) -> None:
        if not values:
            return
        for name, tracker in list(self._trackers.items()):
            self._safely(name, partial(tracker.log, values, step=step))

    def _safely(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # of code that is not ours, of any kind
            self._trackers.pop(name, None)
            what = in_one_line(error)
            self._say(
                f"the tracker {name} failed ({what}) and is off for this session; metrics.jsonl has every row"
            )


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        k: v
        for k, v in row.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and k != "step"
    }


def _tensorboard(run: TrackedRun) -> tuple[Any, bool]:
    from accelerate.tracking import TensorBoardTracker

    directory = run.layout.tensorboard
    tracker = TensorBoardTracker(directory.name, directory.parent, purge_step=run.start + 1)
    return tracker, not directory.is_dir()


def _wandb(run: TrackedRun) -> tuple[Any, bool]:
    from accelerate.tracking import WandBTracker

    place = {"dir": str(run.layout.logs), "config": dict(run.config)}
    tracker = WandBTracker(
        run.project, id=run.id, name=run.segment, group=run.name, resume="allow", **place
    )
    return tracker, run.again


def _trackio(run: TrackedRun) -> tuple[Any, bool]:
    from accelerate.tracking import TrackioTracker

    tracker = TrackioTracker(
        run.project, name=run.id, group=run.name, resume="allow", config=dict(run.config)
    )
    return tracker, run.again


_STARTERS: dict[str, Callable[[TrackedRun], tuple[Any, bool]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""Name -> (a tracker of accelerate, whether it has nothing of the run so far)."""
