"""Integrity of a run: what is damaged, missing, repeated or out of line, each finding with the file at fault.

Rests on run.json, metrics.jsonl and the manifests alone, and on the files that these name: a configuration is not read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.layout import MANIFEST, MODEL_WEIGHTS, SNAPSHOT_WEIGHTS, TRAIN_BATCH, RunLayout, step_name
from pico_contract.schema import (
    CheckpointManifest,
    DirectoryManifest,
    EvaluationManifest,
    RunManifest,
    SnapshotManifest,
    StateManifest,
)

from pico_analyze.trajectory import walk

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be: which check found it, the file at fault, and a sentence."""

    check: str  # damage | missing | duplicate | log | discontinuity
    path: Path
    sentence: str

    def __str__(self) -> str:
        return f"{self.check}: {self.path}: {self.sentence}"


@dataclass
class Audit:
    """What was found, and how much was looked at."""

    findings: list[Finding] = field(default_factory=list)
    directories: int = 0
    evaluations: int = 0


@dataclass
class _Run:
    """The intact directories of a run, by step."""

    layout: RunLayout
    manifest: RunManifest
    checkpoints: dict[int, CheckpointManifest]
    snapshots: dict[int, SnapshotManifest]

    def weights(self, step: int) -> Path | None:
        """The file that holds the weights of a step."""
        if step in self.checkpoints:
            return self.layout.checkpoint(step) / MODEL_WEIGHTS
        if step in self.snapshots and self.snapshots[step].weights == "snapshot":
            return self.layout.snapshot(step) / SNAPSHOT_WEIGHTS
        return None


def audit(root: str | Path, hashes: bool = True, progress: Progress | None = None) -> Audit:
    """Check the run at `root`; without `hashes` manifests and sizes alone, so that no tensor is read.

    Raises:
        DamagedError: there is no run.json, or it does not parse.
    """
    layout = RunLayout(Path(root))
    result = Audit()
    run = _Run(layout, codec.read_manifest(layout.manifest, RunManifest), {}, {})
    result.findings += _directories(run, result, hashes)
    result.findings += _evaluations(run, result)
    result.findings += [*_missing(run), *_log(run), *_duplicate_files(run)]
    if hashes:
        result.findings += _trajectory(run, progress)
    return result


def _directories(run: _Run, result: Audit, hashes: bool) -> Iterator[Finding]:
    """Damage of checkpoints, their state and snapshots; what is intact is added to `run`."""
    kinds: tuple[tuple[Path, type[Any], dict[int, Any]], ...] = (
        (run.layout.checkpoints, CheckpointManifest, run.checkpoints),
        (run.layout.snapshots, SnapshotManifest, run.snapshots),
    )
    for parent, kind, intact in kinds:
        for step in codec.listed_steps(parent):
            directory = parent / step_name(step)
            manifest, found = _sealed(directory, kind, step, hashes)
            result.directories += 1
            if manifest is not None and manifest.run != run.manifest.name:
                found.append(Finding("damage", directory / MANIFEST, f'is of the run "{manifest.run}"'))
            if manifest is not None and not found:
                intact[step] = manifest
            if kind is CheckpointManifest and run.layout.state(step).is_dir():
                found += _sealed(run.layout.state(step), StateManifest, step, hashes)[1]
            yield from found


def _sealed(directory: Path, kind: type[Any], step: int, hashes: bool) -> tuple[Any, list[Finding]]:
    """The manifest of a directory, None where it is not readable, and every file that is not as the manifest says."""
    try:
        manifest = codec.read_manifest(directory / MANIFEST, kind)
    except DamagedError as error:
        return None, [Finding("damage", directory / MANIFEST, _less(str(error), directory / MANIFEST))]
    found = [
        Finding("damage", directory / file, sentence)
        for file in manifest.files
        if (sentence := _fault(directory / file, manifest, hashes))
    ]
    if manifest.step != step:
        found.append(Finding("damage", directory / MANIFEST, f"is of step {manifest.step}"))
    return manifest, found


def _fault(path: Path, manifest: DirectoryManifest, hashes: bool) -> str | None:
    entry = manifest.files[path.name]
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry.size:
        return f"has {size} bytes where its manifest says {entry.size}"
    if hashes and codec.sha256_file(path) != entry.sha256:
        return "does not have the sha256 that its manifest says: its bytes were altered"
    return None


def _evaluations(run: _Run, result: Audit) -> Iterator[Finding]:
    """Evaluations that do not parse, or whose step, run or settings are not those of their place."""
    for step in codec.listed_steps(run.layout.evaluations):
        for path in sorted((run.layout.evaluations / step_name(step)).glob("*.json")):
            result.evaluations += 1
            try:
                found = codec.read_manifest(path, EvaluationManifest)
            except DamagedError as error:
                yield Finding("damage", path, _less(str(error), path))
                continue
            settings = hashlib.sha256(json.dumps(found.settings, sort_keys=True).encode()).hexdigest()[:8]
            if (found.step, found.run) != (step, run.manifest.name):
                yield Finding("damage", path, f'is of step {found.step} of the run "{found.run}"')
            elif path != run.layout.evaluation(step, found.task, settings):
                name = run.layout.evaluation(step, found.task, settings).name
                yield Finding("damage", path, f"its task and settings belong to {name}: it was altered or renamed")


def _missing(run: _Run) -> Iterator[Finding]:
    """Steps that run.json and the regular spacing of the others call for, and parts that a manifest calls for."""
    layout, newest = run.layout, run.manifest.step
    if newest not in run.checkpoints and newest not in codec.listed_steps(layout.checkpoints):
        yield Finding("missing", layout.checkpoint(newest), "run.json says that this step was saved")
    for step, manifest in run.snapshots.items():
        if manifest.weights == "checkpoint" and step not in run.checkpoints:
            yield Finding("missing", layout.checkpoint(step), "the snapshot of the step refers to it for its weights")
    kinds = {f"{one.split}.{one.kind}" for manifest in run.snapshots.values() for one in manifest.observed}
    for step, manifest in run.snapshots.items():
        held = {f"{one.split}.{one.kind}" for one in manifest.observed} | set(manifest.absent)
        for kind in sorted(kinds - held):
            yield Finding("missing", layout.snapshot(step) / MANIFEST, f"names no {kind}, which other steps have")
    listed = set(codec.listed_steps(layout.snapshots))
    for step in sorted(expected_steps(listed, newest, run.manifest.total_steps) - listed):
        yield Finding("missing", layout.snapshot(step), "was not observed, though the steps around it were")


def expected_steps(observed: set[int], newest: int, total: int) -> set[int]:
    """Steps that a regular schedule with the `observed` ones has up to `newest`; only the ends where there is none.

    A schedule is step 0, the multiples of a stride, the last step, and, where 1 and 2 were observed, powers of two
    below the stride. The stride is the greatest common divisor of the observed steps that are none of the others; it
    is believed where it has two such steps, explains all that was observed and lacks fewer steps than it explains.
    """
    early = {1, 2} <= observed
    powers = {2**i for i in range(total.bit_length())} if early else set()
    regular = observed - {0, total} - powers
    stride = reduce(math.gcd, regular, 0)
    due = {0} | ({total} if newest >= total else set()) if observed else set()
    if len(regular) < 2:
        return due
    due |= set(range(0, newest + 1, stride)) | {power for power in powers if power < min(stride, newest)}
    return due if observed - {total} <= due and len(due - observed) < len(due & observed) else {0}


def _log(run: _Run) -> Iterator[Finding]:
    """Lines of metrics.jsonl that do not parse, steps that repeat or go back, gaps, tokens that fall, a loss that is
    not finite, and an end before the newest checkpoint."""
    path = run.layout.metrics
    if not path.is_file():
        if run.manifest.step > 0:
            yield Finding("log", path, f"is missing, though the run is at step {run.manifest.step}")
        return
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append((int(row["step"]), row))
        except (ValueError, KeyError, TypeError):
            yield Finding("log", path, f"line {number} is not a row with a step")
    if not rows:
        return
    strides = [later - earlier for (earlier, _), (later, _) in pairwise(rows)]
    usual = max(sorted(set(strides)), key=strides.count, default=1)
    for (before, old), (step, new), stride in zip(rows[:-1], rows[1:], strides, strict=True):
        if stride <= 0:
            yield Finding("log", path, f"step {step} follows step {before}: rows repeat or go back")
        elif stride > usual > 0:
            yield Finding(
                "log", path, f"nothing between step {before} and step {step}, with {usual} in between as usual"
            )
        if stride > 0 and new.get("tokens", 0) < old.get("tokens", 0):
            yield Finding(
                "log", path, f"tokens fall from {old['tokens']} at step {before} to {new['tokens']} at {step}"
            )
    for step, row in rows:
        loss = row.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            yield Finding("log", path, f"the loss of step {step} is {loss}")
    last = rows[-1][0]
    if last + max(usual, 1) <= run.manifest.step:
        yield Finding("log", path, f"ends at step {last}, though the run is at step {run.manifest.step}")


def _duplicate_files(run: _Run) -> Iterator[Finding]:
    """Observations of one file name that are bit-identical in two steps, by the sha256 of their manifests."""
    seen: dict[tuple[str, str], list[int]] = defaultdict(list)
    for step, manifest in sorted(run.snapshots.items()):
        for file, entry in manifest.files.items():
            if file not in (SNAPSHOT_WEIGHTS, TRAIN_BATCH):  # weights are compared tensor by tensor, rows may recur
                seen[file, entry.sha256].append(step)
    for (file, _), steps in seen.items():
        for step in steps[1:]:
            yield Finding("duplicate", run.layout.snapshot(step) / file, f"is bit-identical to that of step {steps[0]}")


def _trajectory(run: _Run, progress: Progress | None) -> Iterator[Finding]:
    paths = {step: path for step in sorted({*run.checkpoints, *run.snapshots}) if (path := run.weights(step))}
    for check, step, sentence in walk(paths, _still(run), progress):
        yield Finding(check, paths[step], sentence)


def _still(run: _Run) -> set[int]:
    """Updates whose learning rate was 0, which leave the weights as they are."""
    found = set()
    if run.layout.metrics.is_file():
        for line in run.layout.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                found |= {int(row["step"])} if row["lr"] == 0 else set()
            except (ValueError, KeyError, TypeError):
                continue  # reported as a line that is not a row
    return found


def _less(sentence: str, path: Path) -> str:
    """The sentence without the path that it begins with."""
    return sentence.removeprefix(str(path)).lstrip(" :")
