"""One start of a run, while it lasts: its state, metrics and manifest, and how it ends."""

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
    """What one start of a run works with; `resumed_at` is the step whose checkpoint it continues,
    None at first.

    Of several processes the main one alone holds the lock, and alone writes; every method is called
    by all of them. Checkpoints and snapshots are written by `writer` while training goes on;
    run.json is written by the thread that trains, and names a checkpoint once it is there for
    readers.
    """

    job: Job
    lock: RunLock
    manifest: RunManifest
    state: TrainState
    metrics: MetricsFile | None
    reporter: Reporter
    trackers: Trackers
    resumed_at: int | None
    stop: StopRequest = field(default_factory=StopRequest)
    pusher: Pusher | None = None
    writer: Writer = field(default_factory=Writer)
    published: int = 0
    """The newest step whose checkpoint is on disk, set by the writer's thread; of the main process
    alone."""
    saved_at: int | None = None
    """The newest step whose checkpoint is on disk or will be before anything that is handed to
    `writer` from now on."""

    def __post_init__(self) -> None:
        self.published, self.saved_at = self.manifest.step, self.resumed_at

    @cached_property
    def flops_per_token(self) -> int:
        """Floating-point operations of an update, a token."""
        return flops_per_token(self.job.config.model, self.job.seq_len)

    @property
    def flops_available(self) -> float | None:
        """Floating-point operations a second of all processes' devices, where this session has
        measured its own."""
        rate = self.manifest.sessions[-1]["matmul_rate"]
        return None if rate is None else rate * self.job.runtime.processes

    def asked_to_stop(self) -> str | None:
        """Why to stop now, or None: the same in every process, whichever was asked."""
        reason = self.stop.asked()
        if not self.job.runtime.any(reason is not None):
            return None
        return reason or "another process was asked to stop"

    def save(self) -> None:
        """Hand a checkpoint of the current step to the writer, which makes the metrics so far
        durable before it and applies the keep policy after it."""
        saved = self.state.capture()

        def on_main() -> None:
            self.writer.wait_for_slot()
            held = saved.copied()
            rows = self.metrics.entry if self.metrics is not None else None
            self.writer.submit(lambda: self._publish(held, rows))

        self.job.runtime.on_main(on_main)
        self.saved_at = self.state.counters.step

    def _publish(self, saved: SavedState, rows: FileEntry | None) -> None:
        self._sync_metrics()
        save_checkpoint(self.job.layout, saved, self.job.metadata, rows)
        self.published = int(saved.counters["step"])
        if self.pusher is not None:
            self.pusher.wake()
        for line in prune_checkpoints(
            self.job.layout,
            self.job.config.checkpoint.keep,
            self.published,
            self.manifest.total_steps,
        ):
            self.reporter.say(line)

    def newest_saved(self) -> int:
        """The newest saved step, once everything that was handed to the writer is on disk or has
        failed."""

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

    def rebuild(self) -> None:
        """Build model, method and optimizer anew from the state, as a resume from a checkpoint of
        it would."""
        self.state = self.job.build_state(self.state.capture(everywhere=True), drop_unknown=True)

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
            self.write_manifest()

    def is_logged(self, step: int) -> bool:
        """Whether update `step` is told where not every update is: in metrics.jsonl, or by a line
        on the console."""
        return self._logs(step) or self.reporter.is_due(step)

    def log(self, row: dict[str, Any]) -> None:
        """One update, told to the console and, when due, to metrics.jsonl."""
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
        """Record how the session ended in good order, once everything that was handed to the writer
        is on disk."""

        def on_main() -> int:
            self.writer.flush()
            self.job.observers.close(self.state.counters.step, self.reporter.say)
            self._sync_metrics()
            self.manifest.status, self.manifest.message = status, message
            self.write_manifest()
            if (
                self.pusher is not None
            ):  # a session that was asked to stop has no time; the next one pushes the rest
                self.pusher.finish(
                    self.job.config.hub.wait_minutes * 60 if status == "finished" else 0
                )
            return self.published

        return SessionResult(status, self.job.runtime.on_main(on_main), message)

    def fail(self, error: BaseException) -> None:
        """Record a failure where the disk still allows it, after what was handed to the writer;
        `error` itself is what the caller sees, with a note where the writer failed as well."""
        if not self.job.runtime.is_main:
            return
        lost = isinstance(error, LockHeldError)  # the run is another process's now
        message = in_one_line(error)
        second = self.writer.close(drop=lost)
        if second is not None and second not in (error, error.__cause__):
            note = f"while that was to be recorded, writing failed as well: {in_one_line(second)}"
            error.add_note(note)
            self.reporter.say(note)
            message = f"{message}; {note}"
        if lost:
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
        """Replace run.json, with a new heartbeat and the newest step that is on disk."""
        self.manifest.heartbeat, self.manifest.step = codec.utc_now(), self.published
        codec.write_text(self.job.layout.manifest, self.manifest.to_json())
