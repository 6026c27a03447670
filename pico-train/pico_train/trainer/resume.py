"""The beginning of a session: the lock, the checkpoint to continue from, and the files to write."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.files import irregularity
from pico_contract.layout import step_name
from pico_contract.lock import RunLock
from pico_contract.schema import RunManifest

from pico_train.checkpoint.disk_space import check_disk_space, explain_disk_full
from pico_train.checkpoint.load import load_checkpoint, newest_intact
from pico_train.checkpoint.retention import prune_checkpoints
from pico_train.checkpoint.state import TrainState
from pico_train.hub.push import open_pusher
from pico_train.log.console import Reporter
from pico_train.log.metrics import MetricsFile, read_metrics
from pico_train.log.trackers import TrackedRun, Trackers
from pico_train.run.build import require_processes
from pico_train.run.disk_usage import remaining
from pico_train.run.inherit import differing_ends
from pico_train.run.job import Job
from pico_train.run.micro_batch import find_micro_batch
from pico_train.trainer.manifest import (
    changed_code,
    changed_conditions,
    check_identity,
    edited_files,
    kept_micro_batch,
    new_manifest,
    session_record,
    write_config,
)
from pico_train.trainer.session import Session, SessionResult
from pico_train.trainer.signals import StopRequest, handle_signals


@contextmanager
def open_session(job: Job, quiet: bool = False) -> Iterator[Session | SessionResult]:
    """Lock the run and start it, or continue it from its newest intact checkpoint.

    It yields a `SessionResult` if the run is already finished.

    Raises:
        UserError: a live process holds the lock, the identity of the configuration changed, or
            sharding was asked for with a single process.
    """
    require_processes(job.config.train.sharding, job.runtime.processes)
    stop = StopRequest(_deadline(job))
    with _locked(job) as lock, handle_signals(stop), _computing_with(job.config.train.threads):
        # The main process looks at the files, and all begin with what it found.
        point = job.runtime.on_main(lambda: _find_resume_point(job))
        manifest = RunManifest.from_json(point["manifest"], job.layout.manifest)
        newest: int | None = point["newest"]
        # A finished run may still have checkpoints to push.
        if newest is not None and _is_finished(manifest, newest):
            yield _finished(job, manifest, newest)
            return
        session = _start_session(job, lock, manifest, newest, quiet)
        session.stop = stop
        notices = [lock.taken_over, *point["notices"], *_resume_notices(job, manifest, newest)]
        for notice in filter(None, notices):
            session.reporter.say(notice)
        try:
            with explain_disk_full(job.layout.root, lambda: remaining(job, session.published)):
                job.runtime.on_main(lambda: job.observers.resume(newest or 0))
                yield session
                session.writer.flush()  # an error of the writer is an error of the session
        except BaseException as error:
            session.fail(error)
            raise
        finally:
            job.loader.close()
            session.writer.close()
            if session.metrics is not None:
                session.metrics.close()
            session.trackers.close()
            if session.pusher is not None:
                session.pusher.close()
            session.reporter.close()


def _deadline(job: Job) -> float:
    """Return when to stop, on the clock of `time.monotonic`."""
    hours, margin = job.config.train.max_hours, job.config.train.stop_margin_minutes
    if hours is None:
        return math.inf
    # A correction of the wall clock must not move the deadline.
    return time.monotonic() + hours * 3600 - margin * 60


def _is_finished(manifest: RunManifest, newest: int | None) -> bool:
    return manifest.status == "finished" and newest == manifest.total_steps


def _finished(job: Job, manifest: RunManifest, newest: int) -> SessionResult:
    nothing = f"{job.layout.root} is finished (step {newest}); there is nothing to do"
    message = job.runtime.on_main(lambda: _push_rest(job, manifest) or nothing)
    return SessionResult("finished", newest, message)


@contextmanager
def _locked(job: Job) -> Iterator[RunLock]:
    """Hold the run's lock in the main process, for all of them."""
    lock = RunLock(job.layout.lock)
    try:
        job.runtime.on_main(lock.acquire)
        yield lock
    finally:
        if job.runtime.is_main:
            lock.release()


def _find_resume_point(job: Job) -> dict[str, Any]:
    """Find the manifest and the newest checkpoint to continue from, as JSON for every process."""
    manifest = _manifest(job)
    newest, notices = newest_intact(job.layout)
    if not _is_finished(manifest, newest):
        if job.layout.manifest.is_file():
            notices += edited_files(job.layout, manifest, newest)
        notices += filter(None, [job.data.verify_at_start()])
        notices += _prepare_disk(job, newest)
    return {"manifest": manifest.to_json(), "newest": newest, "notices": notices}


def _prepare_disk(job: Job, newest: int | None) -> list[str]:
    """Prune by the keep policy, which may have changed, and check that the rest of the run fits.

    Raises:
        UserError: it does not fit, and `disk` says that it must.
    """
    notices = _thin(job, newest) if newest is not None else []
    warning = check_disk_space(job.config.disk, job.layout.root, remaining(job, newest))
    return [*notices, *filter(None, [warning])]


def _thin(job: Job, newest: int) -> list[str]:
    return prune_checkpoints(
        job.layout, job.config.checkpoint.keep, newest, job.config.train.steps
    )


@contextmanager
def _computing_with(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        # The number is global to the process, which may go on to other work.
        torch.set_num_threads(before)


def _manifest(job: Job) -> RunManifest:
    layout = job.layout
    parents = [
        layout.root,
        layout.checkpoints,
        layout.snapshots,
        layout.evaluations,
        layout.logs,
    ]
    evaluated = codec.listed_steps(layout.evaluations)
    parents += [layout.evaluations / step_name(step) for step in evaluated]
    for parent in parents:
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


def _start_session(
    job: Job, lock: RunLock, manifest: RunManifest, newest: int | None, quiet: bool
) -> Session:
    layout, start = job.layout, newest or 0

    def build_state(job: Job) -> TrainState:
        if newest is None:
            return job.build_state(None)
        return job.build_state(load_checkpoint(layout, newest, manifest.name, job.config.model))

    notice = None
    if job.config.train.micro_batch_size == "auto":
        # A compiled trial would compile anew for each number of rows.
        eager = replace(job, compiled=False)
        job, notice = _resolve_micro_batch(job, manifest, lambda: build_state(eager))
    state = build_state(job)
    # After the micro-batch is known, which the record states.
    manifest.sessions.append(session_record(job, start))
    manifest.status, manifest.step, manifest.message = "running", start, ""
    counters, quiet = state.counters, quiet or not job.runtime.is_main
    reporter = Reporter(
        job.config.log, manifest.total_steps, counters.step, counters.tokens, quiet
    )
    session = Session(
        job, lock, manifest, state, None, reporter, Trackers(reporter.say), newest
    )
    if notice is not None:
        reporter.say(notice)
    job.runtime.on_main(lambda: _open_files(session, start))
    return session


def _resolve_micro_batch(
    job: Job, manifest: RunManifest, build_state: Callable[[], TrainState]
) -> tuple[Job, str]:
    """Resolve `train.micro_batch_size: auto`: return the job with a number, and a line that says which.

    A run keeps the number of its earlier sessions: another would round sums in another order.
    """
    kept = job.runtime.on_main(lambda: kept_micro_batch(job, manifest.sessions))
    rows = kept or find_micro_batch(job, build_state)
    reason = "as before" if kept else "which fit the memory"
    return job.with_micro_batch(rows), f"micro-batch (auto): {rows} rows, {reason}"


def _open_files(session: Session, start: int) -> None:
    job, layout = session.job, session.job.layout
    _write_inputs(session)
    # Rows beyond the checkpoint belong to updates that are about to be repeated: they are cut.
    session.metrics = MetricsFile(layout, start)
    session.write_manifest()
    session.pusher = open_pusher(layout, job.config.hub, session.manifest, session.reporter.say)
    if job.config.log.trackers:
        run = _tracked_run(session, start, session.metrics.was_cut)
        session.trackers.open(job.config.log.trackers, run)


def _write_inputs(session: Session) -> None:
    """Write config.yaml and the probe, and their digests into run.json."""
    # First without digests: an interruption must not leave one of a file that was replaced.
    job, layout, manifest = session.job, session.job.layout, session.manifest
    if manifest.digests:
        manifest.digests = {}
        session.write_manifest()
    config_digest = write_config(job)
    _write_probe(job)
    manifest.digests = {
        layout.config.name: config_digest,
        layout.probe.name: codec.sha256_file(layout.probe),
    }


def _tracked_run(session: Session, start: int, again: bool) -> TrackedRun:
    config, layout = session.job.config, session.job.layout
    return TrackedRun(
        layout=layout,
        name=config.name,
        project=config.log.project,
        created=session.manifest.created,
        config=config.model_dump(mode="json"),
        start=start,
        again=again,
        rows=read_metrics(layout.metrics),
    )


def _push_rest(job: Job, manifest: RunManifest) -> str:
    """Push the rest of a finished run; return a line about it, "" if nothing was left."""
    lines: list[str] = []
    pusher = open_pusher(job.layout, job.config.hub, manifest, lines.append)
    if pusher is None:
        return ""
    pusher.finish(job.config.hub.wait_minutes * 60)
    if not lines and pusher.delivered:
        return f"pushed to {job.config.hub.repo}: {pusher.delivered}"
    return "; ".join(lines)


def _write_probe(job: Job) -> None:
    """Write probe.safetensors if it is missing or damaged; data and configuration determine it."""
    path, probe = job.layout.probe, job.observer.probe
    wanted = {"rows": probe.row_ids, "tokens": probe.tokens.int()}
    try:
        stored = codec.read_tensors(path) if irregularity(path) is None else {}
    except DamagedError:
        stored = {}
    same_names = stored.keys() == wanted.keys()
    if not same_names or any(not torch.equal(stored[name], wanted[name]) for name in wanted):
        codec.write_tensors(path, wanted)


def _resume_notices(job: Job, manifest: RunManifest, newest: int | None) -> list[str]:
    """Return the lines that a session says at its start."""
    if newest is None:
        ends = differing_ends(job.data.manifest.special_tokens, job.metadata.special_tokens)
        return [ends] if ends else []
    notices = [f"continuing {job.layout.root} from step {newest}"]
    if len(manifest.sessions) < 2:
        return notices
    before, now = manifest.sessions[-2:]
    notices += changed_code(before, now)
    changed = ", ".join(changed_conditions(before, now))
    if changed:
        notices.append(
            f"not bit-identical to an uninterrupted run, for these differ: {changed}"
        )
    return notices
