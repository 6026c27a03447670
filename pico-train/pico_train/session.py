"""One start of a run: lock, signals, manifest, metrics, and the state that it begins with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.layout import step_name
from pico_contract.lock import LockHeldError, RunLock
from pico_contract.schema import RunManifest, SnapshotManifest

from pico_train.checkpoint import load_checkpoint, newest_intact, save_checkpoint
from pico_train.disk import check_room, telling_room
from pico_train.keep import thin
from pico_train.record import (
    changed_conditions,
    check_identity,
    kept_micro_batch,
    new_manifest,
    session_record,
    write_config,
)
from pico_train.report import MetricsFile, Reporter
from pico_train.room import find_micro_batch
from pico_train.run import Job
from pico_train.state import SavedState, TrainState
from pico_train.stop import StopRequest, listening
from pico_train.storage import remaining
from pico_train.writer import Writer


@dataclass
class Outcome:
    """How a session ended: `status` is finished or stopped; `step` is the newest saved step."""

    status: str
    step: int
    message: str = ""


@dataclass
class Session:
    """What one start of a run works with; `resumed_at` is the step whose checkpoint it continues, None at first.

    Of several processes the main one alone holds the lock, and alone writes; every method is called by all of them.
    Checkpoints and snapshots are written by `writer` while training goes on; run.json is written by the thread that
    trains, and names a checkpoint once it is there for readers.
    """

    job: Job
    lock: RunLock
    manifest: RunManifest
    state: TrainState
    metrics: MetricsFile | None
    reporter: Reporter
    resumed_at: int | None
    stop: StopRequest = field(default_factory=StopRequest)
    writer: Writer = field(default_factory=Writer)
    published: int = 0
    """The newest step whose checkpoint is on disk, set by the writer's thread; of the main process alone."""
    saved_at: int | None = None
    """The newest step whose checkpoint is on disk or will be before anything that is handed to `writer` from now on."""

    def __post_init__(self) -> None:
        self.published, self.saved_at = self.manifest.step, self.resumed_at

    def asked_to_stop(self) -> str | None:
        """Why to stop now, or None: the same in every process, whichever was asked."""
        reason = self.stop.asked()
        if not self.job.runtime.any(reason is not None):
            return None
        return reason or "another process was asked to stop"

    def save(self) -> None:
        """Hand a checkpoint of the current step to the writer, which makes the metrics so far durable before it and
        applies the keep policy after it."""
        saved = self.state.capture()

        def on_main() -> None:
            self.writer.make_room()
            held = saved.copied()
            self.writer.hand_over(lambda: self._publish(held))

        self.job.runtime.on_main(on_main)
        self.saved_at = self.state.counters.step

    def _publish(self, saved: SavedState) -> None:
        self._sync_metrics()
        save_checkpoint(self.job.layout, saved, self.job.card)
        self.published = int(saved.counters["step"])
        for line in _thin(self.job, self.published):
            self.reporter.say(line)

    def newest_saved(self) -> int:
        """The newest saved step, once everything that was handed to the writer is on disk or has failed."""

        def on_main() -> int:
            self.writer.settle()
            return self.published

        return self.job.runtime.on_main(on_main)

    def observed(self, step: int) -> bool:
        """Whether an intact snapshot of `step` exists."""
        snapshot = self.job.layout.snapshot(step)
        return self.job.runtime.on_main(lambda: codec.damage(snapshot, SnapshotManifest) is None)

    def rebuild(self) -> None:
        """Build model, method and optimizer anew from the state, as a resume from a checkpoint of it would."""
        self.state = self.job.build_state(self.state.capture(), drop_unknown=True)

    def beat(self) -> None:
        """A sign of life now and then, and after each save.

        Raises:
            LockHeldError: another process has taken the run over.
            OSError: whatever the writer has failed with.
        """
        if not self.job.runtime.is_main:
            return
        self.writer.check()
        if self.lock.beat() or self.published != self.manifest.step:
            self._write_manifest()

    def log(self, row: dict[str, Any], tokens: int) -> None:
        """One update, told to the console and, when due, to metrics.jsonl."""
        if self.metrics is None:
            return
        step = row["step"]
        row["tokens_per_second"] = round(self.reporter.update(step, row["loss"], tokens), 1)
        if step % self.job.config.log.every == 0 or step == self.manifest.total_steps:
            self.metrics.append(row)

    def end(self, status: str, message: str = "") -> Outcome:
        """Record how the session ended in good order, once everything that was handed to the writer is on disk."""

        def on_main() -> int:
            self.writer.flush()
            self.job.live.close(self.state.counters.step, self.reporter.say)
            self._sync_metrics()
            self.manifest.status, self.manifest.message = status, message
            self._write_manifest()
            return self.published

        return Outcome(status, self.job.runtime.on_main(on_main), message)

    def fail(self, error: BaseException) -> None:
        """Record a failure where the disk still allows it, after what was handed to the writer; `error` itself is what
        the caller sees, with a note where the writer failed as well."""
        if not self.job.runtime.is_main:
            return
        lost = isinstance(error, LockHeldError)  # the run is another process's now
        message = _in_one_line(error)
        second = self.writer.close(drop=lost)
        if second not in (None, error):
            note = f"while that was to be recorded, writing failed as well: {_in_one_line(second)}"
            error.add_note(note)
            self.reporter.say(note)
            message = f"{message}; {note}"
        if lost:
            return
        self.job.live.close(self.state.counters.step, self.reporter.say)
        self.manifest.status, self.manifest.message = "failed", message
        try:
            self._write_manifest()
        except OSError as third:
            self.reporter.say(f"could not record the failure in {self.job.layout.manifest}: {third}")

    def _sync_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.sync()

    def _write_manifest(self) -> None:
        self.manifest.heartbeat, self.manifest.step = codec.utc_now(), self.published
        codec.write_text(self.job.layout.manifest, self.manifest.to_json())


def _in_one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def open_session(job: Job, quiet: bool = False) -> Iterator[Session | Outcome]:
    """Lock the run and continue it from its newest intact checkpoint, or begin it; an `Outcome` when it is finished.

    Raises:
        UserError: a live process holds the lock, or the identity of the configuration changed.
    """
    hours, margin = job.config.train.hours, job.config.train.margin_minutes
    stop = StopRequest(time.monotonic() + hours * 3600 - margin * 60 if hours is not None else math.inf)
    with _locked(job) as lock, listening(stop), _computing_with(job.config.train.threads):
        found = job.runtime.on_main(lambda: _found(job))
        manifest, newest = RunManifest.from_json(found["manifest"], job.layout.manifest), found["newest"]
        if manifest.status == "finished" and newest == manifest.total_steps:
            yield Outcome("finished", newest, f"{job.layout.root} is finished (step {newest}); there is nothing to do")
            return
        session = _begin(job, lock, manifest, newest, quiet)
        session.stop = stop
        for notice in filter(None, [lock.taken_over, *found["notices"], *_resume_notices(job, manifest, newest)]):
            session.reporter.say(notice)
        try:
            with telling_room(job.layout.root, lambda: remaining(job, session.published)):
                job.runtime.on_main(lambda: job.live.resume(newest or 0))
                yield session
                session.writer.flush()
        except BaseException as error:
            session.fail(error)
            raise
        finally:
            session.writer.close()
            if session.metrics is not None:
                session.metrics.close()
            session.reporter.close()


@contextmanager
def _locked(job: Job) -> Iterator[RunLock]:
    """The run's lock, held by the main process for all of them."""
    lock = RunLock(job.layout.lock)
    try:
        job.runtime.on_main(lock.acquire)
        yield lock
    finally:
        if job.runtime.is_main:
            lock.release()


def _found(job: Job) -> dict[str, Any]:
    """What there is to continue, for every process to know the same of."""
    manifest = _manifest(job)
    newest, notices = newest_intact(job.layout)
    if not (manifest.status == "finished" and newest == manifest.total_steps):
        notices += _make_room(job, newest)
    return {"manifest": manifest.to_json(), "newest": newest, "notices": notices}


def _make_room(job: Job, newest: int | None) -> list[str]:
    """Apply the keep policy, which may be a new one, and see that the rest of the run fits; UserError if it must."""
    notices = _thin(job, newest) if newest is not None else []
    warning = check_room(job.config.disk, job.layout.root, remaining(job, newest))
    return [*notices, *filter(None, [warning])]


def _thin(job: Job, newest: int) -> list[str]:
    return thin(job.layout, job.config.checkpoint.keep, newest, job.config.train.steps)


@contextmanager
def _computing_with(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _manifest(job: Job) -> RunManifest:
    layout = job.layout
    parents = [layout.root, layout.checkpoints, layout.snapshots, layout.evaluations, layout.logs]
    for parent in parents + [layout.evaluations / step_name(s) for s in codec.listed_steps(layout.evaluations)]:
        codec.remove_leftovers(parent)
    if not layout.manifest.is_file():
        if codec.listed_steps(layout.checkpoints):
            raise DamagedError(
                f"{layout.root} holds checkpoints but no {layout.manifest.name}, so that nothing says of which run they"
                " are: bring it back, or choose another name"
            )
        return new_manifest(job)
    check_identity(job)
    return codec.read_manifest(layout.manifest, RunManifest)


def _begin(job: Job, lock: RunLock, manifest: RunManifest, newest: int | None, quiet: bool) -> Session:
    layout, start = job.layout, newest or 0

    def build_state() -> TrainState:
        return job.build_state(load_checkpoint(layout, newest, manifest.name) if newest is not None else None)

    found = _resolve_micro_batch(job, manifest, build_state)
    state = build_state()
    manifest.sessions.append(session_record(job, start))
    manifest.status, manifest.step, manifest.message = "running", start, ""
    is_main = job.runtime.is_main
    reporter = Reporter(job.config.log, manifest.total_steps, start, quiet or not is_main)
    session = Session(job, lock, manifest, state, None, reporter, newest)
    if found is not None:
        reporter.say(found)
    job.runtime.on_main(lambda: _open_files(session, start))
    return session


def _resolve_micro_batch(job: Job, manifest: RunManifest, build_state: Callable[[], TrainState]) -> str | None:
    """Put a number in the place of `train.micro_batch: auto`, the one that the run has had; says what was found."""
    if job.config.train.micro_batch != "auto":
        return None
    kept = job.runtime.on_main(lambda: kept_micro_batch(job, manifest.sessions))
    job.set_micro_batch(kept or find_micro_batch(job, build_state))
    return f"micro-batch (auto): {job.micro_batch} rows, {'as before' if kept else 'which fit the memory'}"


def _open_files(session: Session, start: int) -> None:
    job, layout = session.job, session.job.layout
    write_config(job)
    _write_probe(job)
    session.metrics = MetricsFile(layout, start)
    session._write_manifest()


def _write_probe(job: Job) -> None:
    """probe.safetensors, where it is not there or was damaged: it follows from data and configuration."""
    path, probe = job.layout.probe, job.observer.probe
    wanted = {"rows": probe.row_ids, "tokens": probe.tokens.int()}
    try:
        found = codec.read_tensors(path)
    except DamagedError:
        found = {}
    if found.keys() != wanted.keys() or not all(torch.equal(found[name], wanted[name]) for name in wanted):
        codec.write_tensors(path, wanted)


def _resume_notices(job: Job, manifest: RunManifest, newest: int | None) -> list[str]:
    if newest is None:
        return []
    notices = [f"continuing {job.layout.root} from step {newest}"]
    changed = changed_conditions(*manifest.sessions[-2:]) if len(manifest.sessions) > 1 else []
    if changed:
        notices.append(f"not bit-identical to an uninterrupted run, for these differ: {', '.join(changed)}")
    return notices
