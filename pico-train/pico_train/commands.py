"""What the commands beside training do with runs: estimate, list, show rows, evaluate, generate."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MODEL_CONFIG, MODEL_WEIGHTS, RunLayout
from pico_contract.lock import is_stale, read_lock
from pico_contract.schema import CheckpointManifest, RunManifest

from pico_train.config import identity, load
from pico_train.data.packed import PackedData
from pico_train.data.prepare import show
from pico_train.data.tokenizer import load_tokenizer
from pico_train.distributed import Runtime
from pico_train.evaluate.tasks import default_tasks, evaluate, in_one_line
from pico_train.loop import is_due
from pico_train.microbatch import MICROBATCH_GRADIENTS
from pico_train.model.cost import activation_bytes, count_parameters, flops_per_token, state_bytes
from pico_train.model.decoder import Decoder
from pico_train.model.hf import config_from_hf, load_weights
from pico_train.report import read_metrics
from pico_train.run import Job, RunConfig, build
from pico_train.snapshot import DTYPES

RATE = 1e14
"""Operations a second at which `estimate` states a device's time: a round number to scale from."""


def estimate(config: RunConfig, source: str) -> Iterator[str]:
    """Lines on parameters, tokens, arithmetic, memory and disk of a run; its data must exist, nothing is trained.

    Raises:
        UserError: whatever `pico-train run` would refuse before its first step.
    """
    job = build(config, source)
    counts, memory = count_parameters(config.model), state_bytes(config.model)
    steps, batch = config.train.steps, config.train.batch_size
    tokens = steps * batch * job.seq_len
    epochs = steps * batch / job.rows.n_rows
    yield "parameters   " + ", ".join(f"{name} {count:,}" for name, count in counts.items())
    yield f"tokens       {tokens:,} in {steps:,} steps of {batch} rows of {job.seq_len} ({epochs:.2f} epochs)"
    yield f"arithmetic   {tokens * flops_per_token(config.model, job.seq_len):.3e} floating-point operations"
    yield f"memory       {_size(sum(memory.values()))} for weights, gradients and optimizer; activations come on top"
    yield from _of_a_device(job)
    saved = [step for step in range(steps + 1) if is_due(config.checkpoint.every, step) or step == steps]
    # The initialisation has no moments yet.
    disk = len(saved) * memory["weights"] + (len(saved) - 1) * memory["optimizer"]
    yield f"checkpoints  {len(saved)} of {_size(memory['weights'] + memory['optimizer'])} = {_size(disk)}"
    observed = [step for step in range(steps + 1) if config.snapshot.due(step, steps)]
    kinds = _snapshot_bytes(job)
    of_training = sum(size for kind, size in kinds.items() if kind.startswith("train."))
    most = sum(kinds.values()) * len(observed) - of_training * (steps in observed)
    disk = most - kinds["weights"] * len(set(observed) & set(saved))
    yield f"snapshots    {len(observed)} of up to {_size(sum(kinds.values()))} = {_size(disk)}"
    for one in config.observe:
        yield f"observed by  {one.name} at {sum(one.due(step, steps) for step in range(steps + 1))} steps"


def _of_a_device(job: Job) -> Iterator[str]:
    """Lines on what a device holds, computes and reads."""
    train, tokens = job.config.train, job.micro_batch * job.seq_len
    kept = activation_bytes(job.config.model, tokens, job.precision == "bf16")
    yield f"activations  about {_size(kept)} a pass of {job.micro_batch} rows in {job.precision}"
    a_token = flops_per_token(job.config.model, job.seq_len)
    hours = a_token * job.seq_len * train.batch_size * train.steps / (RATE * 3600)
    yield f"time         {hours:,.1f} device-hours at {RATE / 1e12:.0f} TFLOP/s, for {a_token:,} operations a token"
    a_row = job.rows.size / job.rows.n_rows
    a_step = a_row * train.batch_size
    yield f"reads        {_size(a_step * train.steps)} of rows, {_size(a_step)} a step"


def _snapshot_bytes(job: Job) -> dict[str, int]:
    """Bytes of each kind in a snapshot; weights are stored where no checkpoint holds them."""
    config, modules = job.config.snapshot, job.observer.modules
    with torch.device("meta"):
        decoder = Decoder(job.config.model)
    weights = sum(decoder.get_parameter(f"{name}.weight").numel() for name in modules)
    widths = sum(_output_width(decoder.get_submodule(name)) for name in modules)
    rows = len(job.observer.probe.row_ids) * max(len(job.observer.positions), 1)
    train = job.config.train
    numbers = {
        "train.gradients": weights,
        f"train.{MICROBATCH_GRADIENTS}": weights * (train.batch_size // train.rows_per_pass()),
        "val.gradients": weights,
        "val.activations": rows * widths,
    }
    size = DTYPES[config.dtype].itemsize
    kept = {kind: size * count if kind in config.kinds else 0 for kind, count in numbers.items()}
    return {"weights": size * weights, **kept}


def _output_width(module: torch.nn.Module) -> int:
    shape = module.get_parameter("weight").shape
    return shape[-1] if isinstance(module, torch.nn.Embedding) else shape[0]


def run_table(runs: Path) -> list[str]:
    """One line a run below `runs`: name, status, step, loss, disk.

    Raises:
        UserError: there is no such directory.
    """
    if not runs.is_dir():
        raise UserError(f"there is no directory {runs}; name the one that holds your runs")
    layouts = [RunLayout(path) for path in sorted(runs.iterdir()) if RunLayout(path).manifest.is_file()]
    if not layouts:
        return [f"there is no run in {runs}"]
    damaged: list[str] = []
    rows = [("run", "status", "step", "loss", "disk"), *(_run_row(layout, damaged) for layout in layouts)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines + damaged


def _run_row(layout: RunLayout, damaged: list[str]) -> tuple[str, str, str, str, str]:
    """The cells of one run; what is wrong with it is added to `damaged`."""
    disk = _size(_bytes_below(layout.root))
    try:
        manifest = codec.read_manifest(layout.manifest, RunManifest)
    except DamagedError as error:
        damaged.append(str(error))
        return layout.root.name, "damaged", "", "", disk
    rows = read_metrics(layout.metrics)
    step = rows[-1]["step"] if rows else manifest.step
    loss = f"{rows[-1]['loss']:.4f}" if rows else ""
    return layout.root.name, _status(layout, manifest), f"{step}/{manifest.total_steps}", loss, disk


def _bytes_below(root: Path) -> int:
    """Bytes of all files below `root`, some of which may vanish meanwhile: the run may be running."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _status(layout: RunLayout, manifest: RunManifest) -> str:
    """A "running" run whose lock is gone or stale has died."""
    holder = read_lock(layout.lock)
    if manifest.status == "running" and (holder is None or is_stale(holder)):
        return "interrupted"
    return manifest.status


def rows_of_step(config: RunConfig, source: str, step: int, count: int) -> Iterator[str]:
    """The first `count` rows that update `step` reads: row id, token ids, text.

    Raises:
        UserError: the step lies beyond the run, or the data cannot be opened.
    """
    job = build(config, source)
    if step > config.train.steps:
        raise UserError(f"--step is {step}, but the run has {config.train.steps} steps")
    row_ids = job.order.rows(step)
    yield f"update {step} reads {len(row_ids)} rows: {' '.join(map(str, row_ids))}"
    for row, ids, text in show(job.data, row_ids[:count], job.seq_len):
        yield f"\nrow {row}: {' '.join(map(str, ids))}"
        yield text


def open_checkpoint(run: Path, step: int | None) -> tuple[RunLayout, int, Decoder]:
    """(layout, step, decoder in evaluation mode) of a checkpoint of `run`, the newest where `step` is None.

    A damaged checkpoint is refused, also as the newest: another step is taken only where it is asked for.

    Raises:
        UserError: `run` is no run, or has no checkpoint of that step; those that it has are named.
        DamagedError: that checkpoint is damaged; the file and the intact steps are named.
    """
    layout = RunLayout(run)
    if not layout.manifest.is_file():
        raise UserError(f"{run} is not a run directory (it has no {layout.manifest.name})")
    steps = codec.listed_steps(layout.checkpoints)
    chosen = step if step is not None else max(steps, default=None)
    if chosen is None or chosen not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{run} has no checkpoint{'' if step is None else f' {step}'}; it has: {known}")
    problem = codec.damage(layout.checkpoint(chosen), CheckpointManifest, hashes=True)
    if problem is not None:
        others = [s for s in codec.intact_steps(layout.checkpoints, CheckpointManifest) if s != chosen]
        raise DamagedError(f"{problem}; other intact steps: {', '.join(map(str, others)) or 'none'}")
    directory = layout.checkpoint(chosen)
    decoder = Decoder(config_from_hf(json.loads((directory / MODEL_CONFIG).read_text(encoding="utf-8"))))
    load_weights(decoder, codec.read_tensors(directory / MODEL_WEIGHTS))
    return layout, chosen, decoder.eval()


def evaluate_run(run: Path, step: int | None, tasks: list[str] | None, overrides: Sequence[str] = ()) -> str:
    """Evaluate a checkpoint of `run` under the run's own settings and `overrides`; results are written into the run.

    Raises:
        UserError: an override changes what the run is, or what `evaluate` and `open_checkpoint` refuse.
    """
    layout, chosen, decoder = open_checkpoint(run, step)
    config = load(RunConfig, layout.config, overrides)
    before, now = identity(load(RunConfig, layout.config)), identity(config)
    if changed := [key for key in now if now[key] != before.get(key)]:
        raise UserError(f"{changed[0]} is what {run} is, and no setting of its evaluation: override evaluate.* only")
    data = PackedData.open(config.data.path)
    decoder = decoder.to(Runtime(config.train.device).device)
    wanted = tasks if tasks is not None else default_tasks(data, config.evaluation)
    results = evaluate(decoder, data, config.evaluation, layout, config.name, chosen, wanted)
    return f"step {chosen}: {in_one_line(results)}"


def generate_text(
    run: Path,
    prompt: str,
    step: int | None,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> str:
    """`prompt` and what a checkpoint of `run` makes of it; an empty prompt starts after end-of-text.

    Raises:
        UserError: the run has no tokenizer, the prompt is no text, or it exceeds the positions with the new tokens.
    """
    if any("\ud800" <= character <= "\udfff" for character in prompt):  # bytes that the terminal could not decode
        raise UserError("the prompt is not UTF-8")
    layout, chosen, decoder = open_checkpoint(run, step)
    directory = layout.checkpoint(chosen)
    tokenizer = load_tokenizer(directory)
    eos = json.loads((directory / MODEL_CONFIG).read_text(encoding="utf-8")).get("eos_token_id")
    ids = tokenizer.encode(prompt).ids or [eos]
    try:
        made = decoder.generate(
            torch.tensor([ids]),
            tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            eos_token_id=eos,
        )
    except ValueError as error:
        raise UserError(f"{run}, step {chosen}: {error}") from None
    return tokenizer.decode(made[0].tolist())


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
