"""The training loop: flat, with the rare events first and the update last."""

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
from pico_train.observe.snapshot import ObservationDue
from pico_train.optim import clip_gradients, gradient_norm
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
    """Whether an event of step 0 and of every `every` updates (0: never again) is due at `step`."""
    return step == 0 or (every > 0 and step % every == 0)


def fit(session: Session) -> SessionResult:
    """Train to the end of the run, or until asked to stop.

    Everything above the update concerns theta_step. Losses and norms are read at every update. If
    the device itself skips a step that is not finite, they are read only when they are logged, and
    before anything is saved or shown.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; the optimizer has not stepped.
        LockHeldError: another process took the run over.
        OSError: the disk is full or failing; earlier checkpoints stay, and the run can continue.
    """
    config, last = session.job.config, session.job.config.train.steps
    unread: list[Update] = []  # updates whose loss and norm are still on the device
    while True:
        state = session.state
        step = state.counters.step
        # After the last update the run is finished, whoever asked it to stop.
        stopping = session.asked_to_stop() if step < last else None
        due = _due(session, step, stopping is not None)

        # Nothing may be saved or shown before it is known to be finite.
        if due.anything:
            _read_back(session, unread)
        if due.saving:
            session.save()
        if stopping:
            message = f"{stopping}; stopped at step {step}: run the same command to continue"
            return session.end("stopped", message)
        # After the save, because a snapshot may leave its weights to that checkpoint.
        observing = session.begin_observing(due.observing)
        if due.evaluating:
            _evaluate(session, step)
        if step == last:
            session.record(observing.finish(None))
            return session.end("finished")
        session.beat()  # LockHeldError if another process took the run over

        # The update: theta_step -> theta_(step + 1).
        defer = (
            can_defer_check(state, session.job.runtime.device, step + 1)
            and not due.observing.anything
        )
        update = compute_gradients(session.job, state, step + 1, observing, defer=defer)
        norm = _checked_norm(session, unread, update, defer=defer)
        # Before clipping, which scales the gradients in place.
        session.record(observing.finish(update))
        clip_gradients(state.parameters, config.optimizer.grad_clip, norm)
        factor = lr_factor(config.schedule, update.step, last)
        apply_update(state, update, factor)
        if not defer or session.is_logged(update.step):
            _read_back(session, unread)
            session.log(_row(state, update, config.optimizer.lr * factor))
        # A declared boundary of the method, such as a change of ranks.
        if state.method.rebuild_at(update.step):
            _read_back(session, unread)
            session.rebuild()


@dataclass(frozen=True)
class _RareEvents:
    """The rare events at a step, before the update."""

    stopping: bool
    saving: bool
    evaluating: bool
    observing: ObservationDue

    @property
    def anything(self) -> bool:
        return self.stopping or self.saving or self.evaluating or self.observing.anything


def _due(session: Session, step: int, stopping: bool) -> _RareEvents:
    job, config = session.job, session.job.config
    last = config.train.steps
    # Where a session resumes, the checkpoint exists; the observation may have been cut off.
    resumed = step == session.resumed_at
    regular = is_due(config.checkpoint.every, step)
    saving = not resumed and (step == last or stopping or regular)
    observing = ObservationDue(
        store=config.snapshot.due(step, last) and not (resumed and session.observed(step)),
        share=job.observers.due(step),
        in_checkpoint=saving or session.saved_at == step,
    )
    evaluating = config.evaluate.due(step, last)
    return _RareEvents(stopping, saving, evaluating, observing)


def _evaluate(session: Session, step: int) -> None:
    job, reporter = session.job, session.reporter
    # Outside of `on_main`, because all processes have to put sharded weights together.
    model = session.state.plain_decoder()

    def on_main() -> None:
        config = job.config.evaluation
        results = evaluate(
            EvaluatedModel(model, job.vocabulary, job.seq_len, job.data),
            config,
            ResultLocation(job.layout, job.config.name, step),
            default_tasks(job.data, config),
            failed=reporter.say,
            show=reporter.show_evaluation(step),
        )
        if results:
            reporter.say(f"step {step}: {in_one_line(results)}")
            session.trackers.evaluated(step, results)

    with reporter.paused():
        job.runtime.on_main(on_main)


def _row(state: TrainState, update: Update, lr: float) -> dict[str, float | int | str | None]:
    """Build the row of metrics.jsonl of one update."""
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


def _checked_norm(
    session: Session, unread: list[Update], update: Update, *, defer: bool
) -> torch.Tensor:
    """Return the gradient norm, on the device; after this a non-finite update is never stepped."""
    update.norm_on_device = gradient_norm(session.state.parameters)
    unread.append(update)
    if defer:
        skip_step_if_nonfinite(session.state, update, session.job.runtime)
    else:
        _read_back(session, unread)
    return update.norm_on_device


def _read_back(session: Session, unread: list[Update]) -> None:
    """Read losses and norms from the device; NonFiniteError names the first that is not finite."""
    # NaN marks an unread loss; one that really is NaN is read twice, which is harmless.
    read_losses([update for update in unread if math.isnan(update.loss)], session.job.runtime)
    for update in unread:
        assert update.norm_on_device is not None
        update.norm = update.norm_on_device.item()
        if not update.finite:
            raise _failure(session, update)
    unread.clear()


def _failure(session: Session, update: Update) -> NonFiniteError:
    """Write down what is not finite in `update`, and build the error that says so."""
    state, directory = session.state, session.job.layout.failure(update.step)
    # If the host looked late, the device has skipped this update and all since: the weights are
    # still those before it, and its gradient is computed again to be examined.
    if state.counters.step >= update.step:
        state.counters = update.before
        compute_gradients(session.job, state, update.step)
    quantity = "gradient" if math.isfinite(update.loss) else "loss"
    tokens = None if update.row_ids is None else session.job.loader.tokens(update.row_ids)
    examined = examine(state)

    def on_main() -> str:
        return write_failure(
            directory, examined, update.step, update.loss, tokens, update.row_ids
        )

    culprit = session.job.runtime.on_main(on_main)
    return NonFiniteError(
        f"update {update.step}: the {quantity} is not finite (first at {culprit}); nothing was"
        f" stepped. The newest intact checkpoint is step {session.newest_saved()}; the batch and"
        f" the gradient norms are in {directory}"
    )
