"""What a run takes, before its first step: parameters, tokens, arithmetic, memory, disk."""

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
from pico_train.run.disk_usage import Storage
from pico_train.run.job import Job

RATE = 1e14
"""Operations a second at which `estimate` states a device's time: a round number to scale from."""


def estimate(config: RunConfig, source: str) -> Iterator[str]:
    """Lines on parameters, tokens, arithmetic, memory and disk of a run; its data must exist,
    nothing is trained.

    Raises:
        UserError: whatever `pico-train run` would refuse before its first step.
    """
    job = build(config, source)
    storage = Storage(job)
    with error_context(source):
        held = storage.model + storage.state + (storage.observation if config.snapshot.every else 0)
    counts = count_parameters(config.model)
    steps, batch = config.train.steps, config.train.batch_size
    tokens = steps * batch * job.seq_len
    epochs = steps * batch / job.rows.n_rows
    yield "parameters   " + ", ".join(f"{name} {count:,}" for name, count in counts.items())
    architecture = job.metadata.architecture
    yield f"architecture {architecture.name}" + _warning(architecture)
    yield f"tokens       {tokens:,} in {steps:,} steps of {batch} rows of {job.seq_len} ({epochs:.2f} epochs)"
    yield f"arithmetic   {tokens * flops_per_token(config.model, job.seq_len):.3e} floating-point operations"
    yield _memory(storage, held)
    yield from _of_a_device(job)
    yield _evaluation(job)
    yield from _disk(job, storage)
    for one in config.observe:
        yield f"observed by  {one.name} at {sum(one.due(step, steps) for step in range(steps + 1))} steps"


def _warning(architecture: Architecture) -> str:
    if architecture.is_stock:
        return ", a stock class of transformers"
    return f"; no class of transformers computes it ({architecture.departure}): it can be neither exported nor pushed"


def _memory(storage: Storage, held: int) -> str:
    """The line on the phase that takes most."""
    most = max((phase.memory for phase in storage.phases), key=lambda memory: sum(memory.values()))
    parts = {name: in_units(size) for name, size in most.items()}
    return (
        f"memory       {in_units(sum(most.values()))} for weights ({parts['weights']}), gradients"
        f" ({parts['gradients']}) and optimizer ({parts['optimizer']}); activations come on top, and up to"
        f" {in_units(held)} of main memory for copies while they are written"
    )


def _of_a_device(job: Job) -> Iterator[str]:
    """Lines on what a device holds, computes and reads."""
    train, tokens = job.config.train, job.micro_batch * job.seq_len
    kept = activation_bytes(job.config.model, tokens, job.precision == "bf16")
    yield f"activations  about {in_units(kept)} a pass of {job.micro_batch} rows in {job.precision}"
    a_token = flops_per_token(job.config.model, job.seq_len)
    hours = a_token * job.seq_len * train.batch_size * train.steps / (RATE * 3600)
    yield f"time         {hours:,.1f} device-hours at {RATE / 1e12:.0f} TFLOP/s, for {a_token:,} operations a token"
    a_row = job.rows.size / job.rows.n_rows
    a_step = a_row * train.batch_size
    yield f"reads        {in_units(a_step * train.steps)} of rows, {in_units(a_step)} a step"


def _evaluation(job: Job) -> str:
    """The line on evaluations while the run trains, and what they add to the arithmetic of
    training."""
    config, last = job.config.evaluation, job.config.train.steps
    tasks = default_tasks(job.data, config)
    times = f"evaluation   {len(config.steps(last)):,} times"
    if not tasks:
        return f"{times}: nothing to evaluate on"
    others = [task for task in tasks if task != "perplexity"]
    parts = []
    if "perplexity" in tasks:
        rows = job.data.split("validation")
        settings = config.perplexity.settings(rows, job.config.model.max_position_embeddings)
        amount = Amount(settings["rows"], rows.n_rows, "validation rows")
        # A forward pass is a third of the operations of an update on the same tokens.
        evaluated = len(config.steps(last)) * settings["rows"] * settings["seq_len"] / 3
        share = evaluated / (last * job.config.train.batch_size * job.seq_len)
        parts.append(f"perplexity on {amount}, {share:.1%} of the arithmetic of training")
    if others:
        parts.append(f"{', '.join(others)} on top, not counted here")
    return f"{times}: {'; '.join(parts)}"


def _disk(job: Job, storage: Storage) -> Iterator[str]:
    """Lines on what a run takes on disk from its first step to its last."""
    config, last = job.config, job.config.train.steps
    saved, observed = config.checkpoint.steps(last), config.snapshot.steps(last)
    end = storage.after(saved, observed)
    whole = storage.model + storage.state
    if len(end.states) < len(saved):
        yield f"keep         {len(end.models)} of {len(saved)} checkpoints, {len(end.states)} of them with state/"
    yield f"checkpoints  {len(end.models)} of up to {in_units(whole)} = {in_units(storage.checkpoints(end))}"
    yield f"snapshots    {len(observed)} of up to {in_units(storage.observation)} = {in_units(storage.snapshots(end))}"
    yield f"metrics      {last // config.log.every:,} rows = {in_units(storage.metrics())}"
    total, most = (
        size + storage.metrics() for size in (storage.bytes(end), storage.peak(saved, observed))
    )
    free = in_units(free_bytes(job.layout.root))
    yield f"disk         {in_units(total)} in the end, {in_units(most)} at most; {free} free at {config.runs_dir}"
