"""One start of a run: lock, signals, manifest, metrics, and the state that it begins with."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
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
from pico_train.record import changed_conditions, check_identity, new_manifest, session_record, write_config
from pico_train.report import MetricsFile, Reporter
from pico_train.run import Job
from pico_train.sharding import require_processes
from pico_train.state import TrainState
from pico_train.stop import StopRequest, listening


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
    """

    job: Job
    lock: RunLock
    manifest: RunManifest
    state: TrainState
    metrics: MetricsFile | None
    reporter: Reporter
    resumed_at: int | None
    stop: StopRequest = field(default_factory=StopRequest)

    def asked_to_stop(self) -> str | None:
        """Why to stop now, or None: the same in every process, whichever was asked."""
        reason = self.stop.asked()
        if not self.job.runtime.any(reason is not None):
            return None
        return reason or "another process was asked to stop"

    def save(self) -> None:
        """Make the metrics so far durable, then save a checkpoint of the current step."""
        saved = self.state.capture()

        def on_main() -> None:
            self._sync_metrics()
            save_checkpoint(self.job.layout, saved, self.job.card)
            self.manifest.step = int(saved.counters["step"])
            self._write_manifest()

        self.job.runtime.on_main(on_main)
        self.manifest.step = self.state.counters.step

    def observed(self, step: int) -> bool:
        """Whether an intact snapshot of `step` exists."""
        snapshot = self.job.layout.snapshot(step)
        return self.job.runtime.on_main(lambda: codec.damage(snapshot, SnapshotManifest) is None)

    def rebuild(self) -> None:
        """Build model, method and optimizer anew from the state, as a resume from a checkpoint of it would."""
        self.state = self.job.build_state(self.state.capture(everywhere=True), drop_unknown=True)

    def beat(self) -> None:
        """A sign of life now and then; raises LockHeldError when another process has taken the run over."""
        if self.job.runtime.is_main and self.lock.beat():
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
        """Record how the session ended in good order."""

        def on_main() -> None:
            self.job.live.close(self.state.counters.step, self.reporter.say)
            self._sync_metrics()
            self.manifest.status, self.manifest.message = status, message
            self._write_manifest()

        self.job.runtime.on_main(on_main)
        return Outcome(status, self.manifest.step, message)

    def fail(self, error: BaseException) -> None:
        """Record a failure where the disk still allows it; the error itself is what the caller sees."""
        if isinstance(error, LockHeldError) or not self.job.runtime.is_main:
            return  # the run is another process's, now or all along
        self.job.live.close(self.state.counters.step, self.reporter.say)
        self.manifest.status = "failed"
        self.manifest.message = " ".join(f"{type(error).__name__}: {error}".split())
        try:
            self._write_manifest()
        except OSError as second:
            self.reporter.say(f"could not record the failure in {self.job.layout.manifest}: {second}")

    def _sync_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.sync()

    def _write_manifest(self) -> None:
        self.manifest.heartbeat = codec.utc_now()
        codec.write_text(self.job.layout.manifest, self.manifest.to_json())


@contextmanager
def open_session(job: Job, quiet: bool = False) -> Iterator[Session | Outcome]:
    """Lock the run and continue it from its newest intact checkpoint, or begin it; an `Outcome` when it is finished.

    Raises:
        UserError: a live process holds the lock, the identity of the configuration changed, or there is one process
            where several were to share the state.
    """
    require_processes(job.config.train.sharding, job.runtime.processes)
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
            job.runtime.on_main(lambda: job.live.resume(newest or 0))
            yield session
        except BaseException as error:
            session.fail(error)
            raise
        finally:
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
    return {"manifest": manifest.to_json(), "newest": newest, "notices": notices}


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
    state = job.build_state(load_checkpoint(layout, newest, manifest.name) if newest is not None else None)
    manifest.sessions.append(session_record(job, start))
    manifest.status, manifest.step, manifest.message = "running", start, ""
    is_main = job.runtime.is_main
    reporter = Reporter(job.config.log, manifest.total_steps, start, quiet or not is_main)
    session = Session(job, lock, manifest, state, None, reporter, newest)
    job.runtime.on_main(lambda: _open_files(session, start))
    return session


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
