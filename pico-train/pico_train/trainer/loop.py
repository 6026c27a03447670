"""Training: one flat loop, rare events first, the update last and fenced."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pico_contract.errors import UserError

from pico_train.checkpoint.state import TrainState
from pico_train.errors import NonFiniteError
from pico_train.evaluate.tasks import (
    EvaluatedModel,
    ResultLocation,
    default_tasks,
    evaluate,
    in_one_line,
)
from pico_train.observe.microbatch_gradients import MicroBatchGradients
from pico_train.observe.snapshot import FromTraining, Pending
from pico_train.optim import clip_gradients, gradient_norm
from pico_train.run.job import Job
from pico_train.schedule import lr_factor
from pico_train.trainer.nonfinite import (
    can_defer_check,
    examine,
    skip_step_if_nonfinite,
    write_failure,
)
from pico_train.trainer.session import Session, SessionResult
from pico_train.trainer.update import Update, apply_update, compute_gradients, read_losses


def is_due(every: int, step: int) -> bool:
    """Whether something that happens at step 0 and then every `every` updates (0: never again)
    happens at `step`."""
    return step == 0 or (every > 0 and step % every == 0)


def fit(session: Session) -> SessionResult:
    """Train to the end of the run, or until asked to stop; everything at the top of the loop speaks
    of theta_step.

    Where the device itself leaves out what is not finite, losses and norms are read only where they
    are told, and before anything is saved or shown; elsewhere at every update.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; the optimizer has not stepped.
        LockHeldError: another process took the run over.
        OSError: the disk is full or failing; what was saved before stays, and the run can be
            continued.
    """
    job, config, last = session.job, session.job.config, session.job.config.train.steps
    unread: list[Update] = []
    pending: Pending | None = (
        None  # in the main process alone, which observes while the others wait for its gradients
    )
    while True:
        state = session.state
        step = state.counters.step
        stopping = session.asked_to_stop() if step < last else None
        due = _due(session, step, stopping is not None)

        if due.anything:
            _read_back(session, unread)
        if due.saving:
            with session.reporter.paused():
                session.save()
        if stopping:
            return session.end(
                "stopped", f"{stopping}; stopped at step {step}: run the same command to continue"
            )
        gathers = due.observing and (job.runtime.is_main or job.sharded)
        if gathers:
            in_checkpoint = session.saved_at == step
            with session.reporter.paused():
                pending = job.observer.observe(
                    state, in_checkpoint=in_checkpoint, store=due.storing, share=due.sharing
                )
        if due.evaluating:
            with session.reporter.paused():
                _evaluate(session, step)
        if step == last:
            if pending is not None:
                _finish(session, pending, None)
            return session.end("finished")
        session.beat()

        # The update: theta_step -> theta_(step + 1).
        microbatch_gradients = (
            job.observer.micro_batches(state.parameters) if pending is not None else None
        )
        defer = can_defer_check(state, job.runtime.device, step + 1) and not due.observing
        update = compute_gradients(job, state, step + 1, microbatch_gradients, defer=defer)
        norm = _guarded(session, unread, update, defer=defer)
        gradients = job.observer.train_gradients(state.parameters) if gathers else {}
        if pending is not None:
            _finish(
                session,
                pending,
                _from_training(job, state, update, gradients, microbatch_gradients),
            )
            pending = None
        clip_gradients(state.parameters, config.optimizer.grad_clip, norm)
        factor = lr_factor(config.schedule, update.step, last)
        apply_update(state, update, factor)
        if not defer or session.is_logged(update.step):
            _read_back(session, unread)
            session.log(_row(state, update, config.optimizer.lr * factor))
        if state.method.rebuild_at(update.step):
            _read_back(session, unread)
            session.rebuild()


@dataclass(frozen=True)
class _Due:
    """What happens at a step before the update."""

    stopping: bool
    saving: bool
    evaluating: bool
    storing: bool
    sharing: bool

    @property
    def observing(self) -> bool:
        return self.storing or self.sharing

    @property
    def anything(self) -> bool:
        return self.stopping or self.saving or self.evaluating or self.observing


def _due(session: Session, step: int, stopping: bool) -> _Due:
    job, config, last = session.job, session.job.config, session.job.config.train.steps
    again = (
        step == session.resumed_at
    )  # its checkpoint exists; its observations may have been cut off
    return _Due(
        stopping=stopping,
        saving=not again and (step == last or stopping or is_due(config.checkpoint.every, step)),
        evaluating=config.evaluate.due(step, last),
        storing=config.snapshot.due(step, last) and not (again and session.observed(step)),
        sharing=job.observers.due(step),
    )


def _evaluate(session: Session, step: int) -> None:
    job = session.job
    model = session.state.plain_decoder()

    def on_main() -> None:
        config = job.config.evaluation
        evaluated = EvaluatedModel(model, job.vocabulary, job.seq_len, job.data)
        location, tasks = (
            ResultLocation(job.layout, job.config.name, step),
            default_tasks(job.data, config),
        )
        results = evaluate(
            evaluated,
            config,
            location,
            tasks,
            failed=session.reporter.say,
            show=session.reporter.show_evaluation(step),
        )
        if results:
            session.reporter.say(f"step {step}: {in_one_line(results)}")
            session.trackers.evaluated(step, results)

    job.runtime.on_main(on_main)


def _row(state: TrainState, update: Update, lr: float) -> dict[str, float | int | str | None]:
    row: dict[str, float | int | str | None] = {
        "step": update.step,
        "tokens": state.counters.tokens,
        "loss": update.loss,
        "lr": lr,
        "grad_norm": update.norm,
        "order_hash": state.counters.order_hash,
    }
    for name, value in update.scalars.items():
        if name in row:
            raise UserError(
                f'the method logs a scalar "{name}", which is a name of metrics.jsonl\'s own: rename it'
            )
        row[name] = value if math.isfinite(value) else None  # JSON has no NaN
    return row


def _finish(session: Session, pending: Pending, seen: FromTraining | None) -> None:
    with session.reporter.paused():
        observation = pending.finish(seen, session.writer.submit)
        session.job.observers.observe(observation, session.reporter.say)


def _from_training(
    job: Job,
    state: TrainState,
    update: Update,
    gradients: dict[str, torch.Tensor],
    microbatch_gradients: MicroBatchGradients | None,
) -> FromTraining:
    batch = {}
    if update.row_ids is not None:
        batch = {
            "rows": torch.from_numpy(update.row_ids),
            "tokens": job.loader.tokens(update.row_ids).int(),
        }
    return FromTraining(
        gradients, batch, state.method.objective, state.method.dropout, microbatch_gradients
    )


def _guarded(
    session: Session, unread: list[Update], update: Update, *, defer: bool
) -> torch.Tensor:
    """The norm of the gradient of `update`, on the device; steps of what is not finite are ruled
    out from here on."""
    update.norm_on_device = gradient_norm(session.state.parameters)
    unread.append(update)
    if defer:
        skip_step_if_nonfinite(session.state, update, session.job.runtime)
    else:
        _read_back(session, unread)
    return update.norm_on_device


def _read_back(session: Session, unread: list[Update]) -> None:
    """Read losses and norms of the updates since the last reading; NonFiniteError names the first
    that has none."""
    read_losses([update for update in unread if math.isnan(update.loss)], session.job.runtime)
    for update in unread:
        assert update.norm_on_device is not None
        update.norm = update.norm_on_device.item()
        if not update.finite:
            raise _failure(session, update)
    unread.clear()


def _failure(session: Session, update: Update) -> NonFiniteError:
    layout, state = session.job.layout, session.state
    if state.counters.step >= update.step:  # the device has left it out, and all since
        state.counters = update.before
        compute_gradients(session.job, state, update.step)
    what = "gradient" if math.isfinite(update.loss) else "loss"
    tokens = None if update.row_ids is None else session.job.loader.tokens(update.row_ids)
    found = examine(state)
    culprit = session.job.runtime.on_main(
        lambda: write_failure(
            layout.failure(update.step), found, update.step, update.loss, tokens, update.row_ids
        )
    )
    return NonFiniteError(
        f"update {update.step}: the {what} is not finite (first at {culprit}); nothing was stepped. The newest intact"
        f" checkpoint is step {session.newest_saved()}; the batch and the gradient norms are in"
        f" {layout.failure(update.step)}"
    )
