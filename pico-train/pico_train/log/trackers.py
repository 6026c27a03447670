"""Trackers: TensorBoard, Weights & Biases and trackio, as mirrors of metrics.jsonl.

metrics.jsonl is the truth; a tracker shows the same numbers elsewhere, through accelerate.

To add a tracker: put its name into `TrackerName`, write a function that starts it beside `_wandb`,
and add a row to `TRACKERS` at the end of this file.

After a resume from an older step, each tracker must show the history of metrics.jsonl. TensorBoard
purges its events from that step on. Weights & Biases ignores every step below its newest one, and
trackio keeps both histories. In these two, such a run continues as a new tracker run `<name>-<n>`
in the group `<name>`, which receives the whole history first. If a session removes no rows, it
continues the tracker run of the session before.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Literal, NamedTuple, Protocol

from pico_contract import codec
from pico_contract.errors import UserError, in_one_line
from pico_contract.layout import RunLayout
from pico_contract.schema import Measurement

from pico_train.evaluate.results import scalars, task_scalars

TrackerName = Literal["tensorboard", "wandb", "trackio"]
"""The names that `log.trackers` takes; each is also the name of the package to import."""

Say = Callable[[str], None]
Values = dict[str, float]


class Tracker(Protocol):
    """The part of accelerate's trackers that is used here."""

    def start(self) -> None: ...

    def log(self, values: Values, step: int) -> None: ...

    def finish(self) -> None: ...


class NewTracker(NamedTuple):
    """A tracker that is about to start; `is_empty` if it has nothing of this run's history yet."""

    tracker: Tracker
    is_empty: bool


def check_trackers(names: Iterable[TrackerName]) -> None:
    """Check that the packages of the trackers `names` are installed.

    Raises:
        UserError: a package is missing; the message says how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"log.trackers: {name} is not installed: {TRACKERS[name].install_command}"
            )


@dataclass(frozen=True)
class TrackedRun:
    """The run that trackers show, at the beginning of a session that continues step `start`.

    `created` tells runs of one name apart. `again` says that rows beyond `start` were removed from
    metrics.jsonl, and `rows` are the rows that it holds now.
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
        """Name of the tracker run: the run's, with a number after the first removal of rows."""
        return f"{self.name}-{self.layout.cuts + 1}" if self.layout.cuts else self.name

    @property
    def id(self) -> str:
        """Identifier of the tracker run: the same in all sessions of a segment, and only there."""
        digest = hashlib.sha256(f"{self.name} {self.created}".encode()).hexdigest()
        return f"{self.segment}-{digest[:8]}"

    def history(self) -> list[tuple[int, Values]]:
        """List (step, values) up to `start`, the evaluations of a step after its row."""
        rows = [(row["step"], _numbers(row)) for row in self.rows]
        steps = [
            step for step in codec.listed_steps(self.layout.evaluations) if step <= self.start
        ]
        evaluations = [(step, scalars(self.layout, step)) for step in steps]
        # The sort is stable, so the row of a step stays before its evaluations.
        return sorted([*rows, *evaluations], key=itemgetter(0))


class Trackers:
    """The trackers of a session.

    If a tracker fails, it is reported once and disabled for the session; training continues.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._trackers: dict[TrackerName, Tracker] = {}
        self._logged_before: set[tuple[int, str]] = set()

    def open(self, names: Iterable[TrackerName], run: TrackedRun) -> None:
        """Start the trackers `names`, and bring them up to date with metrics.jsonl."""
        # The resumed step is evaluated again, and its results are part of the history already.
        self._logged_before = {(run.start, key) for key in scalars(run.layout, run.start)}
        for name in names:
            self._disable_on_error(name, partial(self._start, name, run))

    def row(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row of metrics.jsonl under their names there."""
        self._log(row["step"], _numbers(row))

    def evaluated(self, step: int, results: Mapping[str, Mapping[str, Measurement]]) -> None:
        """Log the results of an evaluation of theta_step as `task/metric`."""
        values = {}
        for task, metrics in results.items():
            for key, value in task_scalars(task, metrics).items():
                if (step, key) not in self._logged_before:
                    values[key] = value
        self._log(step, values)

    def close(self) -> None:
        """Let each tracker write its remaining values."""
        # A copy, because a tracker that fails is removed meanwhile.
        for name, tracker in list(self._trackers.items()):
            self._disable_on_error(name, tracker.finish)
        self._trackers.clear()

    def _start(self, name: TrackerName, run: TrackedRun) -> None:
        tracker, is_empty = TRACKERS[name].create(run)
        tracker.start()
        self._trackers[name] = tracker
        if is_empty:
            for step, values in run.history():
                tracker.log(values, step=step)

    def _log(self, step: int, values: Values) -> None:
        if not values:
            return
        for name, tracker in list(self._trackers.items()):
            self._disable_on_error(name, partial(tracker.log, values, step=step))

    def _disable_on_error(self, name: TrackerName, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a tracker's library may raise anything
            self._trackers.pop(name, None)
            reason = in_one_line(error)
            self._say(
                f"the tracker {name} failed ({reason}) and is off for this session; metrics.jsonl has every row"
            )


def _numbers(row: Mapping[str, Any]) -> Values:
    """Pick the numbers of a row, without its step."""
    values = {}
    for name, value in row.items():
        # A bool is an int in Python, but not a number to plot.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and name != "step":
            values[name] = value
    return values


def _tensorboard(run: TrackedRun) -> NewTracker:
    from accelerate.tracking import TensorBoardTracker

    # The directory is the run's in every session; only the events beyond `start` are purged.
    directory = run.layout.tensorboard
    is_empty = not directory.is_dir()
    tracker = TensorBoardTracker(directory.name, directory.parent, purge_step=run.start + 1)
    return NewTracker(tracker, is_empty)


def _wandb(run: TrackedRun) -> NewTracker:
    from accelerate.tracking import WandBTracker

    tracker = WandBTracker(
        run.project,
        id=run.id,
        name=run.segment,
        group=run.name,
        resume="allow",
        dir=str(run.layout.logs),
        config=dict(run.config),
    )
    return NewTracker(tracker, is_empty=run.again)


def _trackio(run: TrackedRun) -> NewTracker:
    from accelerate.tracking import TrackioTracker

    # trackio has no identifier beside the name, so the name has to tell runs apart.
    tracker = TrackioTracker(
        run.project, name=run.id, group=run.name, resume="allow", config=dict(run.config)
    )
    return NewTracker(tracker, is_empty=run.again)


class TrackerEntry(NamedTuple):
    """The command that installs a tracker's package, and the function that creates the tracker."""

    install_command: str
    create: Callable[[TrackedRun], NewTracker]


TRACKERS: dict[TrackerName, TrackerEntry] = {
    "tensorboard": TrackerEntry("pip install 'pico-train[tensorboard]'", _tensorboard),
    "wandb": TrackerEntry("pip install 'pico-train[wandb]'", _wandb),
    "trackio": TrackerEntry("pip install trackio", _trackio),
}
"""All trackers, by the name that `log.trackers` takes."""
