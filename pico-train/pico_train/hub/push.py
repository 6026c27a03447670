"""Checkpoints on their way to the hub: in order, each once, beside training, which never waits for
them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MANIFEST, MODEL_WEIGHTS, RunLayout
from pico_contract.schema import CheckpointManifest, RunManifest

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

_FIRST_WAIT, _LONGEST_WAIT = 2.0, 300.0  # seconds between attempts; doubled from one to the next
_LOOK_EVERY = 30.0  # seconds between looks for checkpoints that nobody told of


class HubUploader:
    """What of a run's checkpoints the hub lacks, and its pushing, one after the other."""

    def __init__(
        self, layout: RunLayout, branch: Branch, config: HubConfig, last: int, say: Say
    ) -> None:
        self.layout, self.branch = layout, branch
        self.closed = threading.Event()
        self._config, self._last, self._say = config, last, say
        self._seen: set[int] = set()
        self._skipped: set[int] = set()
        self.delivered: list[int] = []
        self._looked = False
        self._readme = ""

    def note(self) -> None:
        """Remember which checkpoints there are, so that one that goes before it was pushed is
        missed."""
        self._seen.update(
            step for step in codec.listed_steps(self.layout.checkpoints) if self._is_due(step)
        )

    def missing(self) -> list[int]:
        """Steps that are to be pushed and that the hub lacks as far as it was asked, ascending."""
        return [step for step in sorted(self._seen - self._skipped) if not self._is_there(step)]

    def deliver(self, patience: float) -> None:
        """Push all that is missing, trying again with growing pauses.

        Raises:
            RefusedError: trying again would not help.
            TimeoutError: nothing went through for `patience` seconds.
        """
        progress, wait = time.monotonic(), _FIRST_WAIT
        while not self.closed.is_set():
            try:
                if not self._push_next():
                    return
                progress, wait = time.monotonic(), _FIRST_WAIT
            except Exception as error:  # of the library, the network and the disk, of many kinds
                if self.closed.is_set():
                    return  # nobody waits for it or listens any more
                sentence = refusal(error, self.branch.repo)
                if sentence is not None:
                    raise RefusedError(sentence) from None
                self._looked = (
                    False  # whether the lost request was carried out, the branch must say
                )
                wait = self._pause(error, wait, progress + patience)

    def finish_readme(self) -> None:
        """Push the model card where it says more than the one that went with the last
        checkpoint."""
        readme = self._written_readme()
        if self.branch.pushed and readme != self._readme:
            self.branch.push_readme(readme)
            self._readme = readme

    def _pause(self, error: Exception, wait: float, deadline: float) -> float:
        """Wait for `wait` seconds, or as long as the hub says; returns the next wait."""
        if wait == _FIRST_WAIT and not self.closed.is_set():  # else nobody listens any more
            self._say(f"the hub: {error_text(error)}; trying again")
        seconds = max(wait, retry_after(error))
        if time.monotonic() + seconds > deadline:
            raise TimeoutError(f"the hub cannot be reached ({error_text(error)})") from None
        self.closed.wait(seconds)
        return min(wait * 2, _LONGEST_WAIT)

    def _push_next(self) -> bool:
        """Push the oldest checkpoint that is missing; False where none is."""
        self.note()
        if not self._looked:
            self.branch.look()
            self._looked = True
        missing = self.missing()
        if not missing:
            return False
        step, directory = missing[0], self.layout.checkpoint(missing[0])
        problem = codec.verify_directory(directory, CheckpointManifest, hashes=True)
        if problem is not None:
            self._skipped.add(step)
            what = problem if directory.exists() else "it was removed before its turn came"
            self._say(f"checkpoint {step} is not pushed: {what}")
            return True
        self._readme = self._written_readme(step)
        self.branch.push(
            directory, codec.read_manifest(directory / MANIFEST, CheckpointManifest), self._readme
        )
        self.delivered.append(step)
        return True

    def _written_readme(self, step: int | None = None) -> str:
        steps = sorted({*self.branch.pushed, *([step] if step is not None else [])})
        return model_readme(self.layout, self.branch.repo, {s: self.branch.tag(s) for s in steps})

    def _is_due(self, step: int) -> bool:
        return self._config.due(step, self._last)

    def _is_there(self, step: int) -> bool:
        """Whether the hub has it; weights that were trained anew are pushed anew."""
        pushed = self.branch.pushed.get(step)
        try:
            manifest = codec.read_manifest(
                self.layout.checkpoint(step) / MANIFEST, CheckpointManifest
            )
        except DamagedError:
            return pushed is not None
        return pushed == manifest.files[MODEL_WEIGHTS].sha256


class Pusher:
    """Delivers in a thread of its own from `wake` to `finish`; what it cannot push it says, and
    training goes on."""

    def __init__(self, uploader: HubUploader, say: Say) -> None:
        self._uploader, self._say = uploader, say
        self._problem = ""
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="hub", daemon=True)
        self._thread.start()

    @property
    def delivered(self) -> str:
        """Steps pushed by this session, in their order."""
        return ", ".join(map(str, self._uploader.delivered))

    def wake(self) -> None:
        """There may be something to push."""
        self._uploader.note()
        self._wake.set()

    def finish(self, seconds: float) -> None:
        """Wait up to `seconds` for what is missing, then say what still is and why."""
        self._uploader.note()
        self._ending = True
        self._wake.set()
        self._thread.join(seconds)
        self.close()
        missing = self._uploader.missing()
        if missing or self._problem:
            why = self._problem or "there was no time for more"
            steps = ", ".join(map(str, missing)) or "none"
            root = self._uploader.layout.root
            self._say(
                f"checkpoints not pushed: {steps}; {why}. `pico-train push {root}` pushes what is missing"
            )

    def close(self) -> None:
        """Push nothing more; what is under way is left to itself, and found by the next session."""
        self._uploader.closed.set()
        self._wake.set()

    def _work(self) -> None:
        try:
            while not self._uploader.closed.is_set():
                self._wake.wait(_LOOK_EVERY)
                self._wake.clear()
                ending = (
                    self._ending
                )  # read before, so that nothing that was saved before it is missed
                self._uploader.deliver(patience=float("inf"))
                if ending:
                    self._uploader.finish_readme()
                    return
        except Exception as error:  # whatever it is, training goes on
            self._problem = refusal(error, self._uploader.branch.repo) or error_text(error)
            if not self._uploader.closed.is_set():
                self._say(f"pushing to the hub has ended: {self._problem}; training goes on")


def open_pusher(
    layout: RunLayout, config: HubConfig, manifest: RunManifest, say: Say
) -> Pusher | None:
    """The pusher of a session, already at what an earlier one left; None where `hub.repo` is
    off."""
    if config.repo is None:
        return None
    pusher = Pusher(_uploader(layout, config, manifest, say), say)
    pusher.wake()
    return pusher


def push_run(run: Path, config: HubConfig, say: Say) -> list[int]:
    """Push what the hub lacks of a run, and its model card; the steps that were pushed.

    Raises:
        UserError: `run` is no run, no repository is named, or the hub refuses.
        TimeoutError: the hub could not be reached for `hub.wait_minutes`.
    """
    layout = RunLayout(run)
    if not layout.manifest.is_file():
        raise UserError(f"{run} is not a run directory (it has no {layout.manifest.name})")
    if config.repo is None:
        raise UserError(f"{run} names no repository: give --repo user/name")
    manifest = codec.read_manifest(layout.manifest, RunManifest)
    if not manifest.stock:
        why = manifest.architecture.get("departure", "its run.json says so")
        raise UserError(
            f"{run} cannot be pushed: no class of transformers computes its model ({why})"
        )
    uploader = _uploader(layout, config, manifest, say)
    try:
        uploader.deliver(config.wait_minutes * 60)
        uploader.finish_readme()
    except RefusedError as error:
        raise UserError(str(error)) from None
    return uploader.delivered


def _uploader(layout: RunLayout, config: HubConfig, manifest: RunManifest, say: Say) -> HubUploader:
    assert config.repo is not None
    name = config.branch or manifest.name
    branch = Branch(config.repo, name, config.private, manifest.name, manifest.created)
    return HubUploader(layout, branch, config, manifest.total_steps, say)
