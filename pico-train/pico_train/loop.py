"""Training: one flat loop, rare events first, the update last and fenced."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from pico_contract.errors import UserError

from pico_train.compilation import explained
from pico_train.data.order import chain_hash
from pico_train.evaluate.tasks import Place, Subject, default_tasks, evaluate, in_one_line
from pico_train.failure import NonFiniteError, examine, write_failure
from pico_train.finite import Update, can_wait, hold_back, read_losses
from pico_train.microbatch import MicroBatches
from pico_train.optim import clip_gradients, gradient_norm, set_learning_rates
from pico_train.run import Job
from pico_train.schedule import lr_factor
from pico_train.session import Outcome, Session
from pico_train.snapshot import FromTraining, Pending
from pico_train.state import TrainState


def is_due(every: int, step: int) -> bool:
    """Whether something that happens at step 0 and then every `every` updates (0: never again) happens at `step`."""
    return step == 0 or (every > 0 and step % every == 0)


def fit(session: Session) -> Outcome:
    """Train to the end of the run, or until asked to stop; everything at the top of the loop speaks of theta_step.

    Where the device itself leaves out what is not finite, losses and norms are read only where they are told, and
    before anything is saved or shown; elsewhere at every update.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; the optimizer has not stepped.
        LockHeldError: another process took the run over.
        OSError: the disk is full or failing; what was saved before stays, and the run can be continued.
    """
    job, config, last = session.job, session.job.config, session.job.config.train.steps
    unread: list[Update] = []
    pending: Pending | None = None  # in the main process alone, which observes while the others wait for its gradients
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
            return session.end("stopped", f"{stopping}; stopped at step {step}: run the same command to continue")
        gathers = due.observing and (job.runtime.is_main or job.sharded)
        if gathers:
            in_checkpoint = session.saved_at == step
            with session.reporter.paused():
                pending = job.observer.observe(state, in_checkpoint=in_checkpoint, store=due.storing, share=due.sharing)
        if due.evaluating:
            with session.reporter.paused():
                _evaluate(session, step)
        if step == last:
            if pending is not None:
                _finish(session, pending, None)
            return session.end("finished")
        session.beat()

        # The update: theta_step -> theta_(step + 1).
        separate = job.observer.micro_batches(state.parameters) if pending is not None else None
        later = can_wait(state, job.runtime.device, step + 1) and not due.observing
        update = compute_gradients(job, state, step + 1, separate, later=later)
        norm = _guarded(session, unread, update, later=later)
        gradients = job.observer.train_gradients(state.parameters) if gathers else {}
        if pending is not None:
            _finish(session, pending, _from_training(job, state, update, gradients, separate))
            pending = None
        clip_gradients(state.parameters, config.optimizer.grad_clip, norm)
        factor = lr_factor(config.schedule, update.step, last)
        apply_update(state, update, factor)
        if not later or session.tells(update.step):
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
    again = step == session.resumed_at  # its checkpoint exists; its observations may have been cut off
    return _Due(
        stopping=stopping,
        saving=not again and (step == last or stopping or is_due(config.checkpoint.every, step)),
        evaluating=config.evaluate.due(step, last),
        storing=config.snapshot.due(step, last) and not (again and session.observed(step)),
        sharing=job.live.due(step),
    )


def compute_gradients(
    job: Job, state: TrainState, step: int, separate: MicroBatches | None = None, *, later: bool = False
) -> Update:
    """The gradient of update `step`: of the mean loss over the terms of the whole batch, whatever the micro-batch and
    the number of processes.

    Micro-batches and processes give sums; the one division at the end is by the number of terms of them all, since the
    mean of their means is another objective where these numbers differ. `separate` gets the gradient of each
    micro-batch of this process; `later` leaves the loss to be read by `read_losses`.
    """
    update = Update(step, replace(state.counters))
    batch, copies = _read(job, state, update)
    parts = [None] if batch is None else batch.split(job.micro_batch)
    losses = []  # left on the device: reading one would make it wait for every micro-batch
    terms_here = 0
    sums: dict[str, float] = {}
    for part in parts:
        on_device = None if part is None else part.to(job.runtime.device, non_blocking=True)
        with explained():
            with job.runtime.autocast(job.precision):
                loss_sum, terms, scalars = state.method.loss(state.model, on_device, step)
            loss_sum.backward()
        if separate is not None:
            separate.take(terms, len(parts))
        losses.append(loss_sum.detach())
        terms_here += terms
        for name, value in scalars.items():
            sums[name] = sums.get(name, 0.0) + value * terms
    if separate is not None:
        separate.put_back()
    job.runtime.sum_gradients(state.parameters)
    all_terms, *totals = job.runtime.sums([terms_here, *sums.values()])
    scale = 1.0 / max(all_terms, 1)
    torch._foreach_mul_([p.grad for p in state.parameters.values() if p.grad is not None], scale)
    update.losses, update.scale, update.terms = torch.stack(losses), scale, round(all_terms) // copies
    if not later:
        read_losses([update], job.runtime)
    update.scalars = {name: total * scale for name, total in zip(sums, totals, strict=True)}
    return update


def _read(job: Job, state: TrainState, update: Update) -> tuple[torch.Tensor | None, int]:
    """(what this process reads for the update, how many processes read the same)."""
    reads = state.method.begin_step(update.step)
    if reads is None or isinstance(reads, torch.Tensor):
        return job.runtime.share(reads)
    batch = job.reader.batch(state.counters.reads + 1)
    update.row_ids = batch.row_ids
    return batch.tokens, batch.copies


def apply_update(state: TrainState, update: Update, factor: float) -> None:
    """Step the optimizer at `factor` times its peak learning rates, let the method act, and count."""
    set_learning_rates(state.optimizer, factor)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    counters = state.counters
    counters.step = update.step
    counters.tokens += update.terms
    if update.row_ids is not None:
        counters.reads += 1
        counters.order_hash = chain_hash(counters.order_hash, update.row_ids)
    state.method.after_step(state.model, state.optimizer, update.step)


def _evaluate(session: Session, step: int) -> None:
    job = session.job
    model = session.state.plain_decoder()

    def on_main() -> None:
        config = job.config.evaluation
        subject = Subject(model, job.vocabulary, job.seq_len, job.data)
        place, tasks = Place(job.layout, job.config.name, step), default_tasks(job.data, config)
        results = evaluate(
            subject, config, place, tasks, failed=session.reporter.say, show=session.reporter.show_evaluation(step)
        )
        if results:
            session.reporter.say(f"step {step}: {in_one_line(results)}")
            session.mirrors.evaluated(step, results)

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
            raise UserError(f'the method logs a scalar "{name}", which is a name of metrics.jsonl\'s own: rename it')
        row[name] = value if math.isfinite(value) else None  # JSON has no NaN
    return row


def _finish(session: Session, pending: Pending, seen: FromTraining | None) -> None:
    with session.reporter.paused():
        observation = pending.finish(seen, session.writer.hand_over)
        session.job.live.observe(observation, session.reporter.say)


def _from_training(
    job: Job, state: TrainState, update: Update, gradients: dict[str, torch.Tensor], separate: MicroBatches | None
) -> FromTraining:
    batch = {}
    if update.row_ids is not None:
        batch = {"rows": torch.from_numpy(update.row_ids), "tokens": job.tokens(update.row_ids).int()}
    return FromTraining(gradients, batch, state.method.objective, state.method.dropout, separate)


def _guarded(session: Session, unread: list[Update], update: Update, *, later: bool) -> torch.Tensor:
    """The norm of the gradient of `update`, on the device; steps of what is not finite are ruled out from here on."""
    update.norm_on_device = gradient_norm(session.state.parameters)
    unread.append(update)
    if later:
        hold_back(session.state, update, session.job.runtime)
    else:
        _read_back(session, unread)
    return update.norm_on_device


def _read_back(session: Session, unread: list[Update]) -> None:
    """Read losses and norms of the updates since the last reading; NonFiniteError names the first that has none."""
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
    tokens = None if update.row_ids is None else session.job.tokens(update.row_ids)
    found = examine(state)
    culprit = session.job.runtime.on_main(
        lambda: write_failure(layout.failure(update.step), found, update.step, update.loss, tokens, update.row_ids)
    )
    return NonFiniteError(
        f"update {update.step}: the {what} is not finite (first at {culprit}); nothing was stepped. The newest intact"
        f" checkpoint is step {session.newest_saved()}; the batch and the gradient norms are in"
        f" {layout.failure(update.step)}"
    )
