"""What the commands beside training do with runs: estimate, list, show rows, evaluate, generate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MODEL_CONFIG, MODEL_WEIGHTS, RunLayout
from pico_contract.lock import is_stale, read_lock
from pico_contract.schema import CheckpointManifest, RunManifest

from pico_train.config import read_yaml, validate
from pico_train.data.packed import PackedData
from pico_train.data.prepare import show
from pico_train.data.tokenizer import load_tokenizer
from pico_train.evaluate.tasks import default_tasks, evaluate, in_one_line
from pico_train.loop import is_due
from pico_train.model.cost import count_parameters, flops_per_token, state_bytes
from pico_train.model.decoder import Decoder
from pico_train.model.hf import config_from_hf, load_weights
from pico_train.report import read_metrics
from pico_train.run import RunConfig, build


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
    saved = sum(is_due(config.checkpoint.every, step) or step == steps for step in range(steps + 1))
    one = memory["weights"] + memory["optimizer"]
    yield f"checkpoints  {saved} of {_size(one)} = {_size(saved * one)}"
    observed = sum(config.snapshot.due(step, steps) for step in range(steps + 1))
    each = _snapshot_bytes(config, job.observer.modules, len(job.observer.positions) or 1)
    yield f"snapshots    {observed} of {_size(each)} = {_size(observed * each)}"


def _snapshot_bytes(config: RunConfig, modules: list[str], kept_positions: int) -> int:
    with torch.device("meta"):
        decoder = Decoder(config.model)
    shapes = [decoder.get_parameter(f"{name}.weight").shape for name in modules]
    weights = sum(shape.numel() for shape in shapes)
    rows = config.snapshot.probe_rows * kept_positions
    kinds = config.snapshot.kinds
    copies = 1 + ("train.gradients" in kinds) + ("val.gradients" in kinds)
    activations = rows * sum(shape[0] for shape in shapes) if "val.activations" in kinds else 0
    return {"float32": 4}.get(config.snapshot.dtype, 2) * (copies * weights + activations)


def run_table(runs: Path) -> list[str]:
    """One line a run below `runs`: name, status, step, loss, disk.

    Raises:
        UserError: there is no such directory.
    """
    if not runs.is_dir():
        raise UserError(f"there is no directory {runs}; name the one that holds your runs")
    layouts = [RunLayout(path) for path in sorted(runs.iterdir()) if RunLayout(path).manifest.is_file()]
    rows = [("run", "status", "step", "loss", "disk"), *(_run_row(layout) for layout in layouts)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _run_row(layout: RunLayout) -> tuple[str, str, str, str, str]:
    disk = _size(sum(p.stat().st_size for p in layout.root.rglob("*") if p.is_file()))
    try:
        manifest = codec.read_manifest(layout.manifest, RunManifest)
    except DamagedError as error:
        return layout.root.name, f"damaged: {error}", "", "", disk
    rows = read_metrics(layout.metrics)
    step = rows[-1]["step"] if rows else manifest.step
    loss = f"{rows[-1]['loss']:.4f}" if rows else ""
    return layout.root.name, _status(layout, manifest), f"{step}/{manifest.total_steps}", loss, disk


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
    for row, ids, text in show(job.data, row_ids[:count]):
        yield f"\nrow {row}: {' '.join(map(str, ids[: job.seq_len + 1]))}"
        yield text


def open_checkpoint(run: Path, step: int | None) -> tuple[RunLayout, int, Decoder]:
    """(layout, step, decoder in evaluation mode) of an intact checkpoint of `run`, the newest where `step` is None.

    Raises:
        UserError: `run` is no run, or has no intact checkpoint of that step; those that it has are named.
    """
    layout = RunLayout(run)
    if not layout.manifest.is_file():
        raise UserError(f"{run} is not a run directory (it has no {layout.manifest.name})")
    steps = codec.intact_steps(layout.checkpoints, CheckpointManifest)
    chosen = step if step is not None else max(steps, default=None)
    if chosen is None or chosen not in steps:
        known = ", ".join(map(str, steps)) or "none"
        wanted = "" if step is None else f" {step}"
        raise UserError(f"{run} has no intact checkpoint{wanted}; it has: {known}")
    problem = codec.damage(layout.checkpoint(chosen), CheckpointManifest, hashes=True)
    if problem is not None:
        raise DamagedError(problem)
    directory = layout.checkpoint(chosen)
    decoder = Decoder(config_from_hf(json.loads((directory / MODEL_CONFIG).read_text(encoding="utf-8"))))
    load_weights(decoder, codec.read_tensors(directory / MODEL_WEIGHTS))
    return layout, chosen, decoder.eval()


def evaluate_run(run: Path, step: int | None, tasks: list[str] | None) -> str:
    """Evaluate a checkpoint of `run` under the run's own settings; results are written into the run."""
    layout, chosen, decoder = open_checkpoint(run, step)
    config = validate(RunConfig, read_yaml(layout.config), str(layout.config))
    data = PackedData.open(config.data.path)
    wanted = tasks if tasks is not None else default_tasks(data)
    results = evaluate(decoder, data, config.evaluate, layout, config.name, chosen, wanted)
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
        UserError: the run has no tokenizer, or prompt and new tokens exceed the model's positions.
    """
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
