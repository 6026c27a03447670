"""Integrity of a run: what is damaged, missing, repeated or out of line, each finding with the file
at fault.

Rests on run.json, metrics.jsonl and the manifests, and on the files that these name. Every file of
the run is either compared with a recorded sha256 or named as not covered.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.files import read_regular_text
from pico_contract.kinds import observation_name
from pico_contract.layout import (
    MANIFEST,
    MODEL_WEIGHTS,
    SNAPSHOT_WEIGHTS,
    TRAIN_BATCH,
    RunLayout,
    step_name,
)
from pico_contract.metrics_log import read_rows
from pico_contract.schema import (
    CheckpointManifest,
    EvaluationManifest,
    Manifest,
    RunManifest,
    SnapshotManifest,
    StateManifest,
    has_own_digest,
)
from pico_contract.verify import EDITED, LINKED_STEP, damaged_files, of_other_step, without_path

from pico_analyze.audit.data import check_data
from pico_analyze.audit.findings import Audit as Audit
from pico_analyze.audit.findings import AuditedRun
from pico_analyze.audit.findings import Finding as Finding
from pico_analyze.audit.log import check_log
from pico_analyze.audit.trajectory import walk
from pico_analyze.audit.unlisted import check_inputs, check_rest

Progress = Callable[[int, int], None]


def audit(root: str | Path, hashes: bool = True, progress: Progress | None = None) -> Audit:
    """Check the run at `root`; without `hashes` manifests and sizes alone, so that no tensor is
    read.

    Raises:
        DamagedError: there is no run.json, or it does not parse.
    """
    layout = RunLayout(Path(root))
    result = Audit()
    run = AuditedRun(layout, codec.read_manifest(layout.manifest, RunManifest), hashes)
    _check_digest(run, result, layout.manifest, run.manifest, run.manifest.heartbeat)
    _check_directories(run, result)
    _check_evaluations(run, result)
    for finding in _missing(run):
        result.add(finding.check, finding.path, finding.sentence)
    check_inputs(run, result)
    check_log(run, result)
    check_data(run, result)
    for finding in _duplicate_files(run):
        result.add(finding.check, finding.path, finding.sentence)
    if hashes:
        for finding in _trajectory(run, progress):
            result.add(finding.check, finding.path, finding.sentence)
    check_rest(run, result)
    return result


def _check_digest(
    run: AuditedRun, result: Audit, path: Path, manifest: Manifest, written: str
) -> None:
    """Compare the text of a manifest, which was `written` at that time, with the digest that it
    states."""
    if not manifest.digest:
        if run.states_digest(written):
            result.add(
                "damage",
                path,
                "states no digest, though the version that wrote it states one: it was edited",
            )
        else:
            result.uncovered[path] = "the version that wrote it recorded no digest"
        return
    if run.hashes and not has_own_digest(read_regular_text(path), manifest.digest):
        result.add("damage", path, EDITED)
    result.compared.add(path)


def _check_directories(run: AuditedRun, result: Audit) -> None:
    """Find damage of checkpoints, their state and snapshots; what is intact is added to `run`."""
    kinds: tuple[tuple[Path, type[Any], dict[int, Any]], ...] = (
        (run.layout.checkpoints, CheckpointManifest, run.checkpoints),
        (run.layout.snapshots, SnapshotManifest, run.snapshots),
    )
    for parent, kind, intact in kinds:
        for step in codec.listed_steps(parent):
            directory = parent / step_name(step)
            result.directories += 1
            before = len(result.findings)
            manifest = _check_sealed(run, result, directory, kind, step)
            if manifest is not None and manifest.run != run.manifest.name:
                result.add("damage", directory / MANIFEST, f'is of the run "{manifest.run}"')
            if manifest is not None and len(result.findings) == before:
                intact[step] = manifest
            if kind is CheckpointManifest and run.layout.state(step).is_dir():
                _check_sealed(run, result, run.layout.state(step), StateManifest, step)


def _check_sealed(
    run: AuditedRun, result: Audit, directory: Path, kind: type[Any], step: int
) -> Any:
    """Compare a directory with its manifest, which is returned, or None where it is not
    readable."""
    path = directory / MANIFEST
    if directory.is_symlink():
        result.add("damage", directory, LINKED_STEP)
        return None
    try:
        manifest = codec.read_manifest(path, kind)
    except DamagedError as error:
        result.add("damage", path, without_path(str(error), path))
        return None
    _check_digest(run, result, path, manifest, manifest.created)
    for file, problem in damaged_files(directory, manifest, hashes=run.hashes):
        result.add("damage", file, problem)
    result.compared.update(directory / file for file in manifest.files)
    if manifest.step != step:
        result.add("damage", path, of_other_step(manifest.step))
    return manifest


def _check_evaluations(run: AuditedRun, result: Audit) -> None:
    """Find evaluations that do not parse or whose digest, step, run or settings are not those of
    their place."""
    steps = codec.listed_steps(run.layout.evaluations)
    paths: list[tuple[int | None, Path]] = [
        (step, path) for step in steps for path in _results_of(run, step)
    ]
    if run.layout.reference.is_file():
        paths.append((None, run.layout.reference))
    for step, path in paths:
        result.evaluations += step is not None
        try:
            found = codec.read_manifest(path, EvaluationManifest)
        except DamagedError as error:
            result.add("damage", path, without_path(str(error), path))
            continue
        _check_digest(run, result, path, found, found.created)
        if step is not None and (sentence := _misplaced(run, step, path, found)):
            result.add("damage", path, sentence)


def _results_of(run: AuditedRun, step: int) -> list[Path]:
    return sorted((run.layout.evaluations / step_name(step)).glob("*.json"))


def _misplaced(run: AuditedRun, step: int, path: Path, found: EvaluationManifest) -> str | None:
    if (found.step, found.run) != (step, run.manifest.name):
        return f'is of step {found.step} of the run "{found.run}"'
    expected = run.layout.evaluation(step, found.task, found.settings)
    if path != expected:
        return f"its task and settings belong to {expected.name}: it was altered or renamed"
    return None


def _missing(run: AuditedRun) -> Iterator[Finding]:
    """Steps that run.json and the regular spacing of the others call for, and parts that a manifest
    calls for."""
    layout, newest = run.layout, run.manifest.step
    if newest not in run.checkpoints and newest not in codec.listed_steps(layout.checkpoints):
        yield Finding(
            "missing", layout.checkpoint(newest), "run.json says that this step was saved"
        )
    for step, manifest in run.snapshots.items():
        if manifest.weights == "checkpoint" and step not in run.checkpoints:
            yield Finding(
                "missing",
                layout.checkpoint(step),
                "the snapshot of the step refers to it for its weights",
            )
    kinds = {
        observation_name(one.split, one.kind)
        for manifest in run.snapshots.values()
        for one in manifest.observed
    }
    for step, manifest in run.snapshots.items():
        present = {observation_name(one.split, one.kind) for one in manifest.observed} | set(
            manifest.absent
        )
        for kind in sorted(kinds - present):
            yield Finding(
                "missing",
                layout.snapshot(step) / MANIFEST,
                f"names no {kind}, which other steps have",
            )
    listed = set(codec.listed_steps(layout.snapshots))
    for step in sorted(expected_steps(listed, newest, run.manifest.total_steps) - listed):
        yield Finding(
            "missing", layout.snapshot(step), "was not observed, though the steps around it were"
        )


def expected_steps(observed: set[int], newest: int, total: int) -> set[int]:
    """Steps that a regular schedule with the `observed` ones has up to `newest`; only the ends
    where there is none.

    A schedule is step 0, the multiples of a stride, the last step, and, where 1 and 2 were
    observed, powers of two below the stride. The stride is the greatest common divisor of the
    observed steps that are none of the others; it is believed where it has two such steps, explains
    all that was observed and lacks fewer steps than it explains.
    """
    early = {1, 2} <= observed
    powers = {2**i for i in range(total.bit_length())} if early else set()
    regular = observed - {0, total} - powers
    stride = reduce(math.gcd, regular, 0)
    due = {0} | ({total} if newest >= total else set()) if observed else set()
    if len(regular) < 2 or newest // stride > 2 * len(
        observed
    ):  # a schedule that lacks more than it explains
        return due
    due |= set(range(0, newest + 1, stride)) | {
        power for power in powers if power < min(stride, newest)
    }
    return due if observed - {total} <= due and len(due - observed) < len(due & observed) else {0}


def _duplicate_files(run: AuditedRun) -> Iterator[Finding]:
    """Observations of one file name that are bit-identical in two steps, by the sha256 of their
    manifests."""
    seen: dict[tuple[str, str], list[int]] = defaultdict(list)
    for step, manifest in sorted(run.snapshots.items()):
        for file, entry in manifest.files.items():
            if file not in (
                SNAPSHOT_WEIGHTS,
                TRAIN_BATCH,
            ):  # weights are compared tensor by tensor, rows may recur
                seen[file, entry.sha256].append(step)
    for (file, _), steps in seen.items():
        for step in steps[1:]:
            yield Finding(
                "duplicate",
                run.layout.snapshot(step) / file,
                f"is bit-identical to that of step {steps[0]}",
            )


def _trajectory(run: AuditedRun, progress: Progress | None) -> Iterator[Finding]:
    steps = sorted({*run.checkpoints, *run.snapshots})
    paths = {step: path for step in steps if (path := _weights(run, step)) is not None}
    for check, step, sentence in walk(paths, _still(run), progress):
        yield Finding(check, paths[step], sentence)


def _weights(run: AuditedRun, step: int) -> Path | None:
    """The file that holds the weights of a step."""
    if step in run.checkpoints:
        return run.layout.checkpoint(step) / MODEL_WEIGHTS
    if step in run.snapshots and run.snapshots[step].weights == "snapshot":
        return run.layout.snapshot(step) / SNAPSHOT_WEIGHTS
    return None


def _still(run: AuditedRun) -> set[int]:
    """Updates whose learning rate was 0, which leave the weights as they are."""
    return {row["step"] for row in read_rows(run.layout.metrics) if row.get("lr") == 0}
