"""Observers of other packages, which measure while a run trains.

They are found by name, called when due, and isolated: none of them can disturb training.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from pico_contract import codec
from pico_contract.errors import UserError, in_one_line
from pico_contract.observer import GROUP, Factory, LiveObserver, Observation, ObservedRun
from pydantic import Field

from pico_train.config import Section

Say = Callable[[str], None]


class ObserveConfig(Section):
    """One observer that measures what `snapshot` describes, whether or not that is stored."""

    name: str
    """An installed observer; pico-analyze brings "analyze"."""
    every: int = Field(100, ge=1)
    """Updates between measurements; step 0 and the last step are measured as well."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its options."""

    def due(self, step: int, last: int) -> bool:
        """Whether theta_step is measured in a run of `last` updates."""
        return step % self.every == 0 or step == last


@dataclass
class Observers:
    """The observers of one run of `last` updates.

    If one fails it loses its measurement of that step and no more: a long run should not end for a
    table that can be computed again. The failure is reported, and recorded in logs/observers.jsonl
    with its traceback; the observer is called again when next due.
    """

    run: ObservedRun
    last: int
    observers: list[tuple[ObserveConfig, LiveObserver]]

    def due(self, step: int) -> bool:
        """Whether any observer measures theta_step."""
        return any(config.due(step, self.last) for config, _ in self.observers)

    def resume(self, step: int) -> None:
        """Prepare all observers before the first update, where a failure still may be raised."""
        for _, observer in self.observers:
            observer.resume(step)

    def observe(self, observation: Observation, say: Say) -> None:
        """Show an observation to the observers that are due."""
        for config, observer in self.observers:
            if config.due(observation.step, self.last):
                with self._apart(config.name, observation.step, say):
                    observer.observe(observation)

    def close(self, step: int, say: Say) -> None:
        """Close all observers at the end of a session, at `step`."""
        for config, observer in self.observers:
            with self._apart(config.name, step, say):
                observer.close()

    @contextmanager
    def _apart(self, name: str, step: int, say: Say) -> Iterator[None]:
        """Keep an observer's errors, and what it does to torch's global state, from training."""
        # The number of threads is global to the process: if an observer changed it, later
        # updates would round their sums in another order.
        threads = torch.get_num_threads()
        try:
            # CPU's generator alone: an observer sees CPU tensors only.
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                yield
        except Exception as error:  # another package's code may raise anything
            self._record(name, step, error, say)
        finally:
            torch.set_num_threads(threads)

    def _record(self, name: str, step: int, error: Exception, say: Say) -> None:
        summary = in_one_line(error)
        path = self.run.layout.observer_failures
        say(
            f'the observer "{name}" failed at step {step} ({summary}); training goes on, and the details are in {path}'
        )
        entry = {
            "time": codec.utc_now(),
            "step": step,
            "observer": name,
            "error": summary,
            "traceback": "".join(traceback.format_exception(error)),
        }
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        # A log that cannot be written must not end training either.
        except OSError as second:
            say(f"could not record it in {path}: {second}")


def open_observers(configs: Sequence[ObserveConfig], run: ObservedRun, last: int) -> Observers:
    """Open the observers that `configs` name; each checks its options, and nothing is written yet.

    Raises:
        UserError: an observer is not installed or cannot be imported, its options are wrong, or two
            observers write to one directory.
    """
    observers: list[tuple[ObserveConfig, LiveObserver]] = []
    writers: dict[Path, str] = {}  # directory -> the key of its observer
    for index, config in enumerate(configs):
        key = f"observe.{index}"
        factory = _factory(config.name, key)
        try:
            observer = factory(run, config.options)
        except UserError as error:
            raise UserError(f"{key}.options: {error}") from None
        other = writers.setdefault(observer.results, key)
        if other != key:
            raise UserError(
                f"{key} and {other} both write to {observer.results}: give one another name in its options"
            )
        observers.append((config, observer))
    return Observers(run, last, observers)


def _factory(name: str, key: str) -> Factory:
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in installed:
        choices = 'none is; pico-analyze brings "analyze"'
        if installed:
            choices = f"installed: {', '.join(sorted(installed))}"
        raise UserError(
            f'{key}.name is "{name}", which is not an installed observer ({choices})'
        )
    try:
        return installed[name].load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(f'{key}.name is "{name}", which cannot be imported: {error}') from None
