"""The cost of a run, before its first step: parameters, tokens, arithmetic, memory, disk."""

from __future__ import annotations

from collections.abc import Iterator

from pico_train.checkpoint.disk_space import free_bytes, in_units
from pico_train.errors import error_context
from pico_train.evaluate.progress import Amount
from pico_train.evaluate.tasks import default_tasks
from pico_train.model.cost import activation_bytes, count_parameters, flops_per_token
from pico_train.model.stock import Architecture
from pico_train.run.build import build
from pico_train.run.config import RunConfig
from pico_train.run.disk_usage import Storage, StoredSteps
from pico_train.run.job import Job

RATE = 1e14
"""Operations a second for which `estimate` states a device's time: a round number to scale from."""


def estimate(config: RunConfig, source: str) -> Iterator[str]:
    """Yield lines on the parameters, tokens, arithmetic, memory and disk that a run takes.

    The data must exist; nothing is trained.

    Raises:
        UserError: anything for which `pico-train run` would refuse the run before its first step.
    """
    job = build(config, source)
    storage = Storage(job)
    with error_context(source):
        # This builds the phases of the run on shapes, which its method may refuse.
        copies = storage.model + storage.state
        if config.snapshot.every:
            copies += storage.observation
    # Nothing is yielded before this point: a refused run prints its error alone.
    yield from _model(job)
    yield from _tokens(job)
    yield _memory(storage, copies)
    yield _activations(job)
    yield _time(job)
    yield _reads(job)
    yield _evaluation(job)
    yield from _disk(job, storage)
    yield from _observers(config)


def _model(job: Job) -> Iterator[str]:
    counts = count_parameters(job.config.model)
    yield "parameters   " + ", ".join(f"{name} {count:,}" for name, count in counts.items())
    architecture = job.metadata.architecture
    yield f"architecture {architecture.name}" + _warning(architecture)


def _warning(architecture: Architecture) -> str:
    if architecture.is_stock:
        return ", a stock class of transformers"
    return f"; no class of transformers computes it ({architecture.departure}): it can be neither exported nor pushed"


def _tokens(job: Job) -> Iterator[str]:
    steps, batch = job.config.train.steps, job.config.train.batch_size
    tokens = steps * batch * job.seq_len
    epochs = steps * batch / job.loader.rows.n_rows
    operations = tokens * flops_per_token(job.config.model, job.seq_len)
    yield f"tokens       {tokens:,} in {steps:,} steps of {batch} rows of {job.seq_len} ({epochs:.2f} epochs)"
    yield f"arithmetic   {operations:.3e} floating-point operations"


def _memory(storage: Storage, copies: int) -> str:
    """Describe the phase of the run that takes the most memory."""
    largest = max((phase.memory for phase in storage.phases), key=lambda memory: memory.total)
    return (
        f"memory       {in_units(largest.total)} for weights ({in_units(largest.weights)}), gradients"
        f" ({in_units(largest.gradients)}) and optimizer ({in_units(largest.optimizer)}); activations come on top, and"
        f" up to {in_units(copies)} of main memory for copies while they are written"
    )


def _activations(job: Job) -> str:
    rows = job.micro_batch
    kept = activation_bytes(job.config.model, rows * job.seq_len, job.precision == "bf16")
    return f"activations  about {in_units(kept)} a pass of {rows} rows in {job.precision}"


def _time(job: Job) -> str:
    train = job.config.train
    token_flops = flops_per_token(job.config.model, job.seq_len)
    tokens = job.seq_len * train.batch_size * train.steps
    hours = token_flops * tokens / (RATE * 3600)
    rate = f"{RATE / 1e12:.0f} TFLOP/s"
    return f"time         {hours:,.1f} device-hours at {rate}, for {token_flops:,} operations a token"


def _reads(job: Job) -> str:
    train, rows = job.config.train, job.loader.rows
    step_bytes = rows.size / rows.n_rows * train.batch_size
    run_bytes = step_bytes * train.steps
    return f"reads        {in_units(run_bytes)} of rows, {in_units(step_bytes)} a step"


def _evaluation(job: Job) -> str:
    """Describe the evaluations during training, and the arithmetic that they add to it."""
    config, last = job.config.evaluation, job.config.train.steps
    tasks = default_tasks(job.data, config)
    times = f"evaluation   {len(config.steps(last)):,} times"
    if not tasks:
        return f"{times}: nothing to evaluate on"
    parts = [_perplexity(job)] if "perplexity" in tasks else []
    others = [task for task in tasks if task != "perplexity"]
    if others:
        parts.append(f"{', '.join(others)} on top, not counted here")
    return f"{times}: {'; '.join(parts)}"


def _perplexity(job: Job) -> str:
    config, train = job.config.evaluation, job.config.train
    available = job.data.split("validation")
    limit = job.config.model.max_position_embeddings
    settings = config.perplexity.settings(available, limit)
    rows, seq_len = settings["rows"], settings["seq_len"]
    amount = Amount(rows, available.n_rows, "validation rows")
    times = len(config.steps(train.steps))
    # A forward pass is a third of the operations of an update on the same tokens.
    evaluated = times * rows * seq_len / 3
    trained = train.steps * train.batch_size * job.seq_len
    share = evaluated / trained
    return f"perplexity on {amount}, {share:.1%} of the arithmetic of training"


def _disk(job: Job, storage: Storage) -> Iterator[str]:
    """Describe the disk space that a run takes from its first step to its last."""
    config, last = job.config, job.config.train.steps
    saved = config.checkpoint.steps(last)
    observed = config.snapshot.steps(last)
    end = storage.after(saved, observed)
    yield from _kept(end, len(saved))
    yield _checkpoints(storage, end)
    yield _snapshots(storage, end)
    yield _metrics(storage, last // config.log.every)
    metrics = storage.metrics()
    total = storage.bytes(end) + metrics
    peak = storage.peak(saved, observed) + metrics
    free = in_units(free_bytes(job.layout.root))
    yield f"disk         {_usage(total, peak)}; {free} free at {config.runs_dir}"


def _kept(end: StoredSteps, n_saved: int) -> Iterator[str]:
    models, states = len(end.models), len(end.states)
    if states < n_saved:
        yield f"keep         {models} of {n_saved} checkpoints, {states} of them with state/"


def _checkpoints(storage: Storage, end: StoredSteps) -> str:
    checkpoint = storage.model + storage.state
    return f"checkpoints  {len(end.models)} of {_sizes(checkpoint, storage.checkpoints(end))}"


def _snapshots(storage: Storage, end: StoredSteps) -> str:
    sizes = _sizes(storage.observation, storage.snapshots(end))
    return f"snapshots    {len(end.observed)} of {sizes}"


def _metrics(storage: Storage, n_rows: int) -> str:
    return f"metrics      {n_rows:,} rows = {in_units(storage.metrics())}"


def _usage(total: int, peak: int) -> str:
    return f"{in_units(total)} in the end, {in_units(peak)} at most"


def _sizes(largest: int, total: int) -> str:
    return f"up to {in_units(largest)} = {in_units(total)}"


def _observers(config: RunConfig) -> Iterator[str]:
    steps = config.train.steps
    for observer in config.observe:
        times = sum(observer.due(step, steps) for step in range(steps + 1))
        yield f"observed by  {observer.name} at {times} steps"
