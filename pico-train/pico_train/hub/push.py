"""Push checkpoints to the hub beside training: in order, each once, without delaying it.

`HubUploader` pushes the checkpoints that the hub lacks. `Pusher` runs it in a thread for a session;
`push_run` runs it for the command `pico-train push`. Requests to the hub are in `repository.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MANIFEST, MODEL_WEIGHTS, RunLayout
from pico_contract.schema import CheckpointManifest, RunManifest

from pico_train.checkpoint.load import run_layout
from pico_train.hub.model_card import model_readme
from pico_train.hub.repository import (
    Branch,
    HubConfig,
    RefusedError,
    error_text,
    refusal,
    retry_after,
)

Say = Callable[[str], None]

_FIRST_WAIT, _LONGEST_WAIT = 2.0, 300.0
"""Seconds before the first and at most before a later attempt; each wait doubles the one before."""
_LOOK_EVERY = 30.0
"""Seconds between looks for new checkpoints if nothing wakes the thread."""


class HubUploader:
    """The pushing of a run's checkpoints that the hub lacks, one after the other.

    Attributes:
        closed: set by another thread to stop pushing.
        delivered: steps pushed by this object, in their order.
    """

    def __init__(
        self, layout: RunLayout, branch: Branch, config: HubConfig, last: int, say: Say
    ) -> None:
        self.layout, self.branch = layout, branch
        self.closed = threading.Event()
        self._config, self._last, self._say = config, last, say
        self._seen: set[int] = set()
        self._skipped: set[int] = set()
        self.delivered: list[int] = []
        self._is_branch_known = False
        self._readme = ""

    def note_checkpoints(self) -> None:
        """Remember the checkpoints that exist now."""
        # If the keep policy removes one before its turn, that is then reported.
        for step in codec.listed_steps(self.layout.checkpoints):
            if self._config.due(step, self._last):
                self._seen.add(step)

    def missing(self) -> list[int]:
        """List the steps to push that the hub lacks, by the last look at the branch, ascending."""
        return [
            step for step in sorted(self._seen - self._skipped) if not self._is_pushed(step)
        ]

    def deliver(self, patience: float) -> None:
        """Push every missing checkpoint, and retry with growing pauses.

        Raises:
            RefusedError: another attempt would not help.
            TimeoutError: no request succeeded for `patience` seconds.
        """
        succeeded_at, wait = time.monotonic(), _FIRST_WAIT
        while not self.closed.is_set():
            try:
                if not self._push_next():
                    return
                succeeded_at, wait = time.monotonic(), _FIRST_WAIT
            except Exception as error:  # the library, the network and the disk raise many types
                if self.closed.is_set():
                    return
                sentence = refusal(error, self.branch.repo)
                if sentence is not None:
                    raise RefusedError(sentence) from None
                # A request whose answer was lost may have succeeded: read the branch again.
                self._is_branch_known = False
                wait = self._pause(error, wait, succeeded_at + patience)

    def push_final_readme(self) -> None:
        """Push the model card if it has changed since the last checkpoint was pushed."""
        readme = self._write_readme(self.branch.pushed)
        if self.branch.pushed and readme != self._readme:
            self.branch.push_readme(readme)
            self._readme = readme

    def _pause(self, error: Exception, wait: float, deadline: float) -> float:
        """Wait for `wait` seconds or as long as the hub asks, and return the next wait."""
        # Only the first of several failures is reported.
        if wait == _FIRST_WAIT and not self.closed.is_set():
            self._say(f"the hub: {error_text(error)}; trying again")
        seconds = max(wait, retry_after(error))
        if time.monotonic() + seconds > deadline:
            raise TimeoutError(f"the hub cannot be reached ({error_text(error)})") from None
        self.closed.wait(seconds)
        return min(wait * 2, _LONGEST_WAIT)

    def _push_next(self) -> bool:
        """Push or skip the oldest missing checkpoint, and return whether there was one."""
        self.note_checkpoints()
        if not self._is_branch_known:
            self.branch.look()
            self._is_branch_known = True
        missing = self.missing()
        if not missing:
            return False
        step = missing[0]
        directory = self.layout.checkpoint(step)
        problem = codec.verify_directory(directory, CheckpointManifest, hashes=True)
        if problem is not None:
            # Not an error: the other checkpoints can still be pushed.
            self._skipped.add(step)
            # The keep policy may remove a checkpoint while the hub cannot be reached.
            reason = problem if directory.exists() else "it was removed before its turn came"
            self._say(f"checkpoint {step} is not pushed: {reason}")
            return True
        self._readme = self._write_readme({*self.branch.pushed, step})
        self.branch.push(directory, self._manifest(step), self._readme)
        self.delivered.append(step)
        return True

    def _write_readme(self, steps: Iterable[int]) -> str:
        revisions = {step: self.branch.tag(step) for step in sorted(steps)}
        return model_readme(self.layout, self.branch.repo, revisions)

    def _manifest(self, step: int) -> CheckpointManifest:
        return codec.read_manifest(self.layout.checkpoint(step) / MANIFEST, CheckpointManifest)

    def _is_pushed(self, step: int) -> bool:
        """Whether the hub has this checkpoint; a step that was trained again counts as missing."""
        pushed = self.branch.pushed.get(step)
        try:
            manifest = self._manifest(step)
        except DamagedError:
            # A checkpoint that is damaged or gone cannot be compared with the hub's copy.
            return pushed is not None
        return pushed == manifest.files[MODEL_WEIGHTS].sha256


class Pusher:
    """A thread that pushes the checkpoints of a session while it trains.

    `wake` announces a new checkpoint, and `finish` waits for the rest. A failure is reported, and
    training goes on.
    """

    def __init__(self, uploader: HubUploader, say: Say) -> None:
        self._uploader, self._say = uploader, say
        self._problem = ""
        self._wake = threading.Event()
        self._is_ending = False
        # A daemon, so that a request without an answer does not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="hub", daemon=True)
        self._thread.start()

    @property
    def delivered(self) -> str:
        """Steps pushed by this session, in their order."""
        return ", ".join(map(str, self._uploader.delivered))

    def wake(self) -> None:
        """Announce that there may be a new checkpoint to push."""
        self._uploader.note_checkpoints()
        self._wake.set()

    def finish(self, seconds: float) -> None:
        """Wait up to `seconds` for the missing checkpoints, then report what remains and why."""
        self._uploader.note_checkpoints()
        self._is_ending = True
        self._wake.set()
        self._thread.join(seconds)
        self.close()
        missing = self._uploader.missing()
        if not missing and not self._problem:
            return
        reason = self._problem or "there was no time for more"
        steps = ", ".join(map(str, missing)) or "none"
        root = self._uploader.layout.root
        self._say(
            f"checkpoints not pushed: {steps}; {reason}. `pico-train push {root}` pushes what is missing"
        )

    def close(self) -> None:
        """Push nothing more. A request under way may still succeed; the next session sees it."""
        self._uploader.closed.set()
        self._wake.set()

    def _work(self) -> None:
        try:
            while not self._uploader.closed.is_set():
                self._wake.wait(_LOOK_EVERY)
                self._wake.clear()
                # Read before `deliver`: a checkpoint saved before the end is then never missed.
                is_last_round = self._is_ending
                # Training may outlast any outage; `finish` limits the wait at the end.
                self._uploader.deliver(patience=float("inf"))
                if is_last_round:
                    self._uploader.push_final_readme()
                    return
        except Exception as error:  # no failure of the hub may end training
            self._problem = refusal(error, self._uploader.branch.repo) or error_text(error)
            if not self._uploader.closed.is_set():
                self._say(f"pushing to the hub has ended: {self._problem}; training goes on")


def open_pusher(
    layout: RunLayout, config: HubConfig, manifest: RunManifest, say: Say
) -> Pusher | None:
    """Start the pusher of a session; None if `hub.repo` is off."""
    if config.repo is None:
        return None
    pusher = Pusher(_uploader(layout, config, manifest, say), say)
    pusher.wake()  # an earlier session may have left checkpoints to push
    return pusher


def push_run(run: Path, config: HubConfig, say: Say) -> list[int]:
    """Push the checkpoints of `run` that the hub lacks, then its model card; return their steps.

    Raises:
        UserError: `run` is not a run, no repository is named, or the hub refuses.
        TimeoutError: the hub could not be reached for `hub.wait_minutes`.
    """
    layout = run_layout(run)
    if config.repo is None:
        raise UserError(f"{run} names no repository: give --repo user/name")
    manifest = codec.read_manifest(layout.manifest, RunManifest)
    if not manifest.stock:
        reason = manifest.architecture.get("departure", "its run.json says so")
        raise UserError(
            f"{run} cannot be pushed: no class of transformers computes its model ({reason})"
        )
    uploader = _uploader(layout, config, manifest, say)
    try:
        uploader.deliver(config.wait_minutes * 60)
        uploader.push_final_readme()
    except RefusedError as error:
        raise UserError(str(error)) from None
    return uploader.delivered


def _uploader(
    layout: RunLayout, config: HubConfig, manifest: RunManifest, say: Say
) -> HubUploader:
    assert config.repo is not None
    name = config.branch or manifest.name
    branch = Branch(config.repo, name, config.private, manifest.name, manifest.created)
    return HubUploader(layout, branch, config, manifest.total_steps, say)
