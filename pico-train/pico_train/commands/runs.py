"""What the commands beside training do with runs: list, show rows, evaluate, generate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import TOKENIZER, RunLayout
from pico_contract.lock import RunLock, is_stale, read_lock
from pico_contract.schema import RunManifest
from pico_contract.terminal import one_line

from pico_train.checkpoint.disk_space import in_units
from pico_train.checkpoint.load import newest_intact, open_checkpoint, run_layout
from pico_train.checkpoint.model_folder import read_token_ids, start_token
from pico_train.checkpoint.retention import PlannedRemoval, planned_removals, remove
from pico_train.commands.generation import Sampling, continue_ids, require_utf8
from pico_train.config import identity
from pico_train.data.packed import PackedData
from pico_train.data.prepare import show
from pico_train.data.tokenizer import Vocabulary, encode, load_tokenizer
from pico_train.distributed import Runtime
from pico_train.evaluate.progress import ShowProgress, hidden
from pico_train.evaluate.tasks import (
    EvaluatedModel,
    ResultLocation,
    default_tasks,
    evaluate,
    in_one_line,
)
from pico_train.log.metrics import read_metrics
from pico_train.model.decoder import Decoder
from pico_train.run.build import build
from pico_train.run.config import RunConfig
from pico_train.run.stored_config import load_stored


def prune(
    run: Path, overrides: Sequence[str] = (), dry_run: bool = False, *, trust: bool = False
) -> Iterator[str]:
    """Apply the keep policy of `run`, with overrides such as keep.last=3; lines on what was
    removed, and its bytes.

    With `dry_run` they say what would be removed, and nothing is written. `trust` lets the code be
    imported that the run's configuration names.

    Raises:
        UserError: `run` is no run, an override is not of the policy, a live process writes the run,
            or it has no intact checkpoint to continue from.
    """
    layout = run_layout(run)
    if other := next((item for item in overrides if not item.startswith("keep.")), None):
        raise UserError(
            f'"{other}" is no keep policy: override keep.last, keep.every or keep.state'
        )
    config = load_stored(layout, [f"checkpoint.{item}" for item in overrides], trust=trust)
    if dry_run:
        planned = _planned(layout, config)
        yield from _removal_lines(((one, None) for one in planned), "would remove")
        return
    with RunLock(layout.lock) as lock:
        for parent in (layout.checkpoints, layout.snapshots):
            codec.remove_leftovers(parent)
        for line in _removal_lines(remove(layout, _planned(layout, config)), "removed"):
            lock.beat()
            yield line


def _planned(layout: RunLayout, config: RunConfig) -> list[PlannedRemoval]:
    newest, _ = newest_intact(layout)
    if newest is None:
        raise UserError(
            f"{layout.root} has no intact checkpoint to continue from: nothing is removed"
        )
    total = codec.read_manifest(layout.manifest, RunManifest).total_steps
    return planned_removals(layout, config.checkpoint.keep, newest, total)


def _removal_lines(done: Iterable[tuple[PlannedRemoval, str | None]], verb: str) -> Iterator[str]:
    """A line for each, and one for all."""
    freed = 0
    for one, problem in done:
        yield problem or f"{verb} {one} ({in_units(one.size - one.moved)})"
        freed += one.size - one.moved if problem is None else 0
    yield f"{verb} {in_units(freed)}" if freed else "nothing to remove"


def run_table(runs: Path) -> list[str]:
    """One line a run below `runs`: name, status, step, loss, disk.

    Raises:
        UserError: there is no such directory.
    """
    if not runs.is_dir():
        raise UserError(f"there is no directory {runs}; name the one that holds your runs")
    layouts = [
        RunLayout(path) for path in sorted(runs.iterdir()) if RunLayout(path).manifest.is_file()
    ]
    if not layouts:
        return [f"there is no run in {runs}"]
    damaged: list[str] = []
    found = (tuple(map(one_line, _run_row(layout, damaged))) for layout in layouts)
    rows = [("run", "status", "step", "loss", "disk"), *found]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return lines + [one_line(sentence) for sentence in damaged]


def _run_row(layout: RunLayout, damaged: list[str]) -> tuple[str, str, str, str, str]:
    """The cells of one run; what is wrong with it is added to `damaged`."""
    disk = in_units(_bytes_below(layout.root))
    try:
        manifest = codec.read_manifest(layout.manifest, RunManifest)
        rows, status = read_metrics(layout.metrics), _status(layout, manifest)
    except (UserError, OSError) as error:
        damaged.append(str(error))
        return layout.root.name, "damaged", "", "", disk
    step = rows[-1]["step"] if rows else manifest.step
    loss = f"{rows[-1]['loss']:.4f}" if rows else ""
    return layout.root.name, status, f"{step}/{manifest.total_steps}", loss, disk


def _bytes_below(root: Path) -> int:
    """Bytes of all files below `root`, some of which may vanish meanwhile: the run may be
    running."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
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
    row_ids = job.loader.order.rows(step)
    yield f"update {step} reads {len(row_ids)} rows: {' '.join(map(str, row_ids))}"
    for row, ids, text in show(job.data, row_ids[:count], job.seq_len):
        yield f"\nrow {row}: {' '.join(map(str, ids))}"
        yield text


def evaluate_run(
    run: Path,
    step: int | None,
    tasks: list[str] | None,
    overrides: Sequence[str] = (),
    *,
    again: bool = False,
    trust: bool = False,
    progress: ShowProgress = hidden,
) -> str:
    """Evaluate a checkpoint of `run` under the run's own settings and `overrides`; results are
    written into the run.

    One that is there already under the same settings is read back, unless it is to be measured
    `again`. The packed data are opened for the task `perplexity` alone; all others need the
    checkpoint and its tokenizer. `progress` is called with each task that is measured.

    Raises:
        UserError: an override changes what the run is, the data are not those of the run, or what
            `evaluate` and `open_checkpoint` refuse.
    """
    layout, chosen, decoder = open_checkpoint(run, step)
    config = load_stored(layout, overrides, trust=trust)
    before, now = identity(load_stored(layout, trust=trust)), identity(config)
    if changed := [key for key in now if now[key] != before.get(key)]:
        raise UserError(
            f"{changed[0]} is what {run} is, and no setting of its evaluation: override evaluate.* only"
        )
    data = _data_of_run(layout, config) if tasks is None or "perplexity" in tasks else None
    wanted = (
        tasks
        if tasks is not None
        else default_tasks(data, config.evaluation)
        if data is not None
        else []
    )
    decoder, vocabulary = (
        decoder.to(Runtime(config.train.device).device),
        _vocabulary(layout.checkpoint(chosen), decoder),
    )
    evaluated = EvaluatedModel(
        decoder, vocabulary, config.train.seq_len or _probe_seq_len(layout), data
    )
    known: list[str] = []
    read_back = None if again else known.append
    location = ResultLocation(layout, config.name, chosen)
    results = evaluate(
        evaluated, config.evaluation, location, wanted, read_back=read_back, show=progress
    )
    note = (
        f" (measured before under the same settings: {', '.join(known)}; --again repeats)"
        if known
        else ""
    )
    return f"step {chosen}: {in_one_line(results)}{note}"


def _vocabulary(checkpoint: Path, decoder: Decoder) -> Vocabulary:
    """As the data that the run was trained on had it; or as the model that the run started from."""
    name, start = start_token(read_token_ids(checkpoint))
    tokenizer = checkpoint / TOKENIZER
    known = tokenizer if tokenizer.is_file() else None
    return Vocabulary(checkpoint, known, start, decoder.config.vocab_size, start_name=name)


def _probe_seq_len(layout: RunLayout) -> int | None:
    """Tokens that a row of the run predicts, where its probe is there."""
    if not layout.probe.is_file():
        return None
    shape = codec.TensorFile(layout.probe).shape("tokens")
    if len(shape) != 2:
        raise DamagedError(f"{layout.probe}: its tokens are not rows")
    return shape[1] - 1


def _data_of_run(layout: RunLayout, config: RunConfig) -> PackedData:
    data = PackedData.open(config.data.path, config.data.stream)
    recorded = codec.read_manifest(layout.manifest, RunManifest).data.get("fingerprint")
    if recorded != data.manifest.fingerprint:
        raise UserError(
            f"{config.data.path} does not hold the data of {layout.root} (fingerprint {data.manifest.fingerprint[:12]}"
            f" where {str(recorded)[:12]} is expected): name the directory that does with data.path=DIRECTORY"
        )
    data.verify_at_start()
    return data


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
    """Continue `prompt` with a checkpoint of `run`, encoded as its data was; an empty prompt starts
    after end-of-text.

    Raises:
        UserError: the run has no tokenizer, the prompt is not text, or it exceeds the positions
            with the new tokens.
    """
    require_utf8(prompt)
    layout, chosen, decoder = open_checkpoint(run, step)
    directory = layout.checkpoint(chosen)
    tokenizer = load_tokenizer(directory)
    token_ids = read_token_ids(directory)
    _, start = start_token(token_ids)
    ids = encode(tokenizer, prompt, "the prompt").tolist() or ([] if start is None else [start])
    sampling = Sampling(tokens, temperature, top_k, top_p, seed)
    return continue_ids(
        decoder, tokenizer.decode, ids, sampling, token_ids.get("eos"), f"{run}, step {chosen}"
    )
