"""The commands that work on runs: prune, list, show rows, evaluate, generate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import RunLayout
from pico_contract.lock import RunLock, is_stale, read_lock
from pico_contract.schema import RunManifest
from pico_contract.terminal import one_line

from pico_train.checkpoint.disk_space import in_units
from pico_train.checkpoint.load import newest_intact, open_checkpoint, run_layout
from pico_train.checkpoint.model_folder import read_token_ids
from pico_train.checkpoint.retention import PlannedRemoval, planned_removals, remove
from pico_train.commands.data import describe_rows
from pico_train.commands.evaluation import evaluate_in_one_line, stored_vocabulary
from pico_train.commands.generation import Sampling, continue_ids, require_utf8
from pico_train.config import identity
from pico_train.data.packed import PackedData
from pico_train.data.tokenizer import encode, load_tokenizer
from pico_train.distributed import Runtime
from pico_train.evaluate.progress import ShowProgress, hidden
from pico_train.evaluate.tasks import EvaluatedModel, ResultLocation, default_tasks
from pico_train.log.metrics import read_metrics
from pico_train.run.build import build
from pico_train.run.config import RunConfig
from pico_train.run.stored_config import load_stored

Row = tuple[str, str, str, str, str]
"""The cells of a run in the table of runs: name, status, step, loss, disk."""


def prune(
    run: Path, overrides: Sequence[str] = (), dry_run: bool = False, *, trust: bool = False
) -> Iterator[str]:
    """Apply the keep policy of `run`, with overrides such as keep.last=3, and report each removal.

    With `dry_run`, report what would be removed and write nothing. `trust` allows the import of
    code that the run's configuration names.

    Raises:
        UserError: `run` is not a run, an override is not part of the policy, a live process writes
            the run, or it has no intact checkpoint to continue from.
    """
    layout = run_layout(run)
    for override in overrides:
        if not override.startswith("keep."):
            raise UserError(
                f'"{override}" is not a keep policy: override keep.last, keep.every or keep.state'
            )
    config = load_stored(layout, [f"checkpoint.{item}" for item in overrides], trust=trust)
    if dry_run:
        planned = [(removal, None) for removal in _planned(layout, config)]
        yield from _removal_lines(planned, "would remove")
        return
    with RunLock(layout.lock) as lock:
        # Drafts of processes that were killed; the lock says that nobody is writing one now.
        for parent in (layout.checkpoints, layout.snapshots):
            codec.remove_leftovers(parent)
        for line in _removal_lines(remove(layout, _planned(layout, config)), "removed"):
            lock.beat()  # other processes treat a lock that is not renewed as abandoned
            yield line


def _planned(layout: RunLayout, config: RunConfig) -> list[PlannedRemoval]:
    newest, _ = newest_intact(layout)
    if newest is None:
        raise UserError(
            f"{layout.root} has no intact checkpoint to continue from: nothing is removed"
        )
    total = codec.read_manifest(layout.manifest, RunManifest).total_steps
    return planned_removals(layout, config.checkpoint.keep, newest, total)


def _removal_lines(
    removals: Iterable[tuple[PlannedRemoval, str | None]], verb: str
) -> Iterator[str]:
    """Describe each removal, or the problem that prevented it; the last line is the total."""
    total = 0
    for removal, problem in removals:
        if problem is not None:
            yield problem
            continue
        # Files that move to another directory of the run free no space.
        freed = removal.size - removal.moved
        total += freed
        yield f"{verb} {removal} ({in_units(freed)})"
    yield f"{verb} {in_units(total)}" if total else "nothing to remove"


def run_table(runs: Path) -> list[str]:
    """Describe each run below `runs` in one line: name, status, step, loss, disk.

    Raises:
        UserError: `runs` is not a directory.
    """
    if not runs.is_dir():
        raise UserError(f"there is no directory {runs}; name the one that holds your runs")
    layouts = [RunLayout(path) for path in sorted(runs.iterdir())]
    layouts = [layout for layout in layouts if layout.manifest.is_file()]
    if not layouts:
        return [f"there is no run in {runs}"]
    rows = [["run", "status", "step", "loss", "disk"]]
    problems = []
    for layout in layouts:
        row, problem = _run_row(layout)
        # A run's name may hold line breaks and control characters.
        rows.append([one_line(cell) for cell in row])
        if problem is not None:
            problems.append(one_line(problem))
    return _aligned(rows) + problems


def _aligned(rows: list[list[str]]) -> list[str]:
    """Join the cells of each row, padded to the width of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = map(str.ljust, row, widths)
        lines.append("  ".join(padded).rstrip())
    return lines


def _run_row(layout: RunLayout) -> tuple[Row, str | None]:
    """The cells of one run, and the reason if it is damaged."""
    name, disk = layout.root.name, in_units(_bytes_below(layout.root))
    try:
        manifest = codec.read_manifest(layout.manifest, RunManifest)
        rows = read_metrics(layout.metrics)
        status = _status(layout, manifest)
    except (UserError, OSError) as error:
        return (name, "damaged", "", "", disk), str(error)
    # run.json names the newest step that is saved; the rows of the metrics may be ahead of it.
    step, loss = manifest.step, ""
    if rows:
        newest = rows[-1]
        step, loss = newest["step"], f"{newest['loss']:.4f}"
    return (name, status, f"{step}/{manifest.total_steps}", loss, disk), None


def _bytes_below(root: Path) -> int:
    """Count the bytes of all files below `root`."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            # A run that is training replaces and removes files meanwhile.
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _status(layout: RunLayout, manifest: RunManifest) -> str:
    """Return the status of a run; a "running" run without a live lock was interrupted."""
    # A process that was killed could not change the status in its manifest.
    holder = read_lock(layout.lock)
    if manifest.status == "running" and (holder is None or is_stale(holder)):
        return "interrupted"
    return manifest.status


def rows_of_step(config: RunConfig, source: str, step: int, count: int) -> Iterator[str]:
    """Show the first `count` rows that update `step` reads: row id, token ids, text.

    Raises:
        UserError: the step lies beyond the run, or the data cannot be opened.
    """
    job = build(config, source)
    if step > config.train.steps:
        raise UserError(f"--step is {step}, but the run has {config.train.steps} steps")
    row_ids = job.loader.order.rows(step)
    listed = " ".join(map(str, row_ids))
    yield f"update {step} reads {len(row_ids)} rows: {listed}"
    yield from describe_rows(job.data, row_ids[:count], job.seq_len)


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
    """Evaluate a checkpoint of `run` with its settings and `overrides`, and store the results.

    A result under the same settings is read back, unless `again` is set. Only the task `perplexity`
    opens the packed data; all others need just the checkpoint and its tokenizer. `progress` is
    called with each task that is measured.

    Raises:
        UserError: an override changes what the run is, the data are not those of the run, or
            `evaluate` or `open_checkpoint` raises it.
    """
    layout, chosen, decoder = open_checkpoint(run, step)
    config = load_stored(layout, overrides, trust=trust)
    _require_same_run(run, load_stored(layout, trust=trust), config)
    reads_rows = tasks is None or "perplexity" in tasks
    data = _data_of_run(layout, config) if reads_rows else None
    if tasks is None:
        tasks = default_tasks(data, config.evaluation)
    decoder = decoder.to(Runtime(config.train.device).device)
    vocabulary = stored_vocabulary(layout.checkpoint(chosen), decoder)
    # The data may be on another machine, so the row length comes from the run's own files.
    seq_len = config.train.seq_len or _probe_seq_len(layout)
    evaluated = EvaluatedModel(decoder, vocabulary, seq_len, data)
    location = ResultLocation(layout, config.name, chosen)
    results = evaluate_in_one_line(
        evaluated, config.evaluation, location, tasks, again=again, progress=progress
    )
    return f"step {chosen}: {results}"


def _require_same_run(run: Path, trained: RunConfig, overridden: RunConfig) -> None:
    """Refuse overrides that would evaluate another run than the one that was trained."""
    before, now = identity(trained), identity(overridden)
    for key, value in now.items():
        if value != before.get(key):
            raise UserError(
                f"{key} is what {run} is, and no setting of its evaluation: override evaluate.* only"
            )


def _probe_seq_len(layout: RunLayout) -> int | None:
    """Tokens that a row of the run predicts, read from its probe; None without a probe."""
    if not layout.probe.is_file():
        return None
    # The probe has one token more than a row predicts.
    shape = codec.TensorFile(layout.probe).shape("tokens")
    if len(shape) != 2:
        raise DamagedError(f"{layout.probe}: its tokens are not rows")
    return shape[1] - 1


def _data_of_run(layout: RunLayout, config: RunConfig) -> PackedData:
    """Open the data that the configuration names, and refuse any but those the run read."""
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
    """Continue `prompt` with a checkpoint of `run`; an empty prompt starts after end-of-text.

    The prompt is encoded in the way of the run's data.

    Raises:
        UserError: the run has no tokenizer, the prompt is not text, or prompt and new tokens exceed
            the model's positions.
    """
    require_utf8(prompt)
    layout, chosen, decoder = open_checkpoint(run, step)
    directory = layout.checkpoint(chosen)
    tokenizer = load_tokenizer(directory)
    token_ids = read_token_ids(directory)
    ids = encode(tokenizer, prompt, "the prompt").tolist()
    sampling = Sampling(tokens, temperature, top_k, top_p, seed)
    return continue_ids(
        decoder, tokenizer.decode, ids, sampling, token_ids, f"{run}, step {chosen}"
    )
