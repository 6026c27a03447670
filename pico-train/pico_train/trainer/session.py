"""One session of a run: its state, metrics and manifest, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pico_contract import codec
from pico_contract.errors import in_one_line
from pico_contract.lock import LockHeldError, RunLock
from pico_contract.schema import FileEntry, RunManifest, SnapshotManifest

from pico_train.checkpoint.background_writer import Writer
from pico_train.checkpoint.retention import prune_checkpoints
from pico_train.checkpoint.save import save_checkpoint
from pico_train.checkpoint.state import SavedState, TrainState
from pico_train.hub.push import Pusher
from pico_train.log.console import Reporter
from pico_train.log.metrics import MetricsFile
from pico_train.log.trackers import Trackers
from pico_train.model.cost import flops_per_token
from pico_train.observe.observed import Observed
from pico_train.observe.snapshot import ObservationDue, Observing
from pico_train.run.job import Job
from pico_train.trainer.signals import StopRequest


@dataclass
class SessionResult:
    """How a session ended: `status` is finished or stopped; `step` is the newest saved step."""

    status: str
    step: int
    message: str = ""


@dataclass
class Session:
    """One start of a run, from opening its directory to finishing, stopping or failing.

    Every process calls every method, but only the main one holds the lock and writes. `writer`
    writes checkpoints and snapshots while training goes on. The thread that trains writes run.json,
    which names a checkpoint only when readers can open it.
    """

    job: Job
    lock: RunLock
    manifest: RunManifest
    state: TrainState
    metrics: MetricsFile | None
    reporter: Reporter
    trackers: Trackers
    resumed_at: int | None
    """The step whose checkpoint the session continues; None if it starts the run."""
    stop: StopRequest = field(default_factory=StopRequest)
    pusher: Pusher | None = None
    writer: Writer = field(default_factory=Writer)
    published: int = 0
    """The newest step whose checkpoint is on disk, set by the main process's writer thread."""
    saved_at: int | None = None
    """The newest step whose checkpoint is on disk, or is queued before any write to come."""

    def __post_init__(self) -> None:
        self.published, self.saved_at = self.manifest.step, self.resumed_at

    @cached_property
    def flops_per_token(self) -> int:
        """The floating-point operations of an update for each token."""
        return flops_per_token(self.job.config.model, self.job.seq_len)

    @property
    def flops_available(self) -> float | None:
        """The floating-point operations a second of all devices, if this session measured one."""
        rate = self.manifest.sessions[-1]["matmul_rate"]
        return None if rate is None else rate * self.job.runtime.processes

    def asked_to_stop(self) -> str | None:
        """Return why to stop now, or None; processes agree, whichever was asked."""
        reason = self.stop.asked()
        if not self.job.runtime.any(reason is not None):
            return None
        return reason or "another process was asked to stop"

    def save(self) -> None:
        """Queue a checkpoint of the current step.

        The writer syncs the metrics so far before it, and prunes checkpoints after it.
        """
        with self.reporter.paused():
            # Sharded tensors are put together here, by all processes.
            saved = self.state.capture()

            def on_main() -> None:
                # Waiting before copying limits the copies in memory to the writes in the queue.
                self.writer.wait_for_slot()
                copied = saved.copied()
                # A resume cuts metrics.jsonl back to the rows that this checkpoint has seen.
                rows = self.metrics.entry if self.metrics is not None else None
                self.writer.submit(lambda: self._publish(copied, rows))

            self.job.runtime.on_main(on_main)
            self.saved_at = self.state.counters.step

    def _publish(self, saved: SavedState, rows: FileEntry | None) -> None:
        # The rows first: a checkpoint promises that metrics.jsonl holds every row up to it.
        self._sync_metrics()
        save_checkpoint(self.job.layout, saved, self.job.metadata, rows)
        self.published = int(saved.counters["step"])
        # Pushing reads files: from here on the checkpoint is complete.
        if self.pusher is not None:
            self.pusher.wake()
        keep, last = self.job.config.checkpoint.keep, self.manifest.total_steps
        for line in prune_checkpoints(self.job.layout, keep, self.published, last):
            self.reporter.say(line)

    def newest_saved(self) -> int:
        """Wait until every queued write is on disk or has failed; return the newest saved step."""

        def on_main() -> int:
            self.writer.wait()
            return self.published

        return self.job.runtime.on_main(on_main)

    def observed(self, step: int) -> bool:
        """Whether an intact snapshot of `step` exists."""
        snapshot = self.job.layout.snapshot(step)
        return self.job.runtime.on_main(
            lambda: codec.verify_directory(snapshot, SnapshotManifest) is None
        )

    def begin_observing(self, due: ObservationDue) -> Observing:
        """Begin to observe the current step in the main process, which has the whole state.

        If the state is sharded, the other processes give it their shards.
        """
        takes_part = self.job.runtime.is_main or self.job.sharded
        if not (due.anything and takes_part):
            return Observing()
        with self.reporter.paused():
            return self.job.observer.begin(self.state, due)

    def record(self, observed: Observed | None) -> None:
        """Hand a snapshot to the writer and show it to the observers of other packages."""
        if observed is None:
            return
        with self.reporter.paused():
            if observed.snapshot is not None:
                self.writer.submit(observed.snapshot.write)
            self.job.observers.observe(observed.observation, self.reporter.say)

    def rebuild(self) -> None:
        """Build model, method and optimizer anew from the state, as resuming from it would."""
        self.state = self.job.build_state(
            self.state.capture(everywhere=True), drop_unknown=True
        )

    def beat(self) -> None:
        """Renew the heartbeat of the lock, and run.json after each save.

        Raises:
            LockHeldError: another process has taken the run over.
            OSError: the writer has failed.
        """
        if not self.job.runtime.is_main:
            return
        self.writer.check()
        # `published` moves in the writer's thread; run.json follows here, in this one.
        if self.lock.beat() or self.published != self.manifest.step:
            self.write_manifest()

    def is_logged(self, step: int) -> bool:
        """Whether update `step` is logged to metrics.jsonl or to the console."""
        return self._logs(step) or self.reporter.is_due(step)

    def log(self, row: dict[str, Any]) -> None:
        """Log one update to the console and, when due, to metrics.jsonl and the trackers."""
        if self.metrics is None:
            return
        pace = self.reporter.update(row["step"], row["loss"], row["tokens"])
        row["tokens_per_second"] = round(pace, 1)
        if self.flops_available is not None:
            row["mfu"] = round(pace * self.flops_per_token / self.flops_available, 4)
        if self._logs(row["step"]):
            self.metrics.append(row)
            self.trackers.row(row)

    def _logs(self, step: int) -> bool:
        return step % self.job.config.log.every == 0 or step == self.manifest.total_steps

    def end(self, status: str, message: str = "") -> SessionResult:
        """Record that the session ended in good order, when every queued write is on disk."""

        def on_main() -> int:
            self.writer.flush()
            self.job.observers.close(self.state.counters.step, self.reporter.say)
            self._sync_metrics()
            self.manifest.status, self.manifest.message = status, message
            self.write_manifest()
            if self.pusher is not None:
                # A session that was asked to stop has no time; the next one pushes the rest.
                minutes = self.job.config.hub.wait_minutes if status == "finished" else 0
                self.pusher.finish(minutes * 60)
            return self.published

        return SessionResult(status, self.job.runtime.on_main(on_main), message)

    def fail(self, error: BaseException) -> None:
        """Record a failure after every queued write, if the disk still allows it.

        The caller raises `error`, which gets a note if the writer failed as well.
        """
        if not self.job.runtime.is_main:
            return
        message = in_one_line(error)
        lost_lock = isinstance(error, LockHeldError)
        second = self.writer.close(drop=lost_lock)
        # A full disk is raised as a new error, with the writer's own as its cause.
        if second is not None and second not in (error, error.__cause__):
            note = (
                f"while that was to be recorded, writing failed as well: {in_one_line(second)}"
            )
            error.add_note(note)
            self.reporter.say(note)
            message = f"{message}; {note}"
        # The run belongs to another process now: its files are not ours to write.
        if lost_lock:
            return
        self.job.observers.close(self.state.counters.step, self.reporter.say)
        self.manifest.status, self.manifest.message = "failed", message
        try:
            self.write_manifest()
        except OSError as third:
            self.reporter.say(
                f"could not record the failure in {self.job.layout.manifest}: {third}"
            )

    def _sync_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.sync()

    def write_manifest(self) -> None:
        """Replace run.json, with the time and the newest step that is on disk."""
        self.manifest.heartbeat, self.manifest.step = codec.utc_now(), self.published
        codec.write_text(self.job.layout.manifest, self.manifest.to_json())
