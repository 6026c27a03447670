"""Integrity of a run: everything damaged, missing, repeated or out of line, with the file at fault.

The audit reads run.json, metrics.jsonl, the manifests, and the files that these name. Every file of
the run is either compared with a recorded sha256 or named as not covered.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

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
_OfRun = TypeVar("_OfRun", CheckpointManifest, SnapshotManifest)
_Sealed = TypeVar("_Sealed", CheckpointManifest, SnapshotManifest, StateManifest)


def audit(root: str | Path, hashes: bool = True, progress: Progress | None = None) -> Audit:
    """Check the run at `root`.

    Without `hashes`, only manifests and sizes are checked, and no tensor is read.

    Raises:
        DamagedError: there is no run.json, or it does not parse.
    """
    layout = RunLayout(Path(root))
    result = Audit()
    run = AuditedRun(layout, codec.read_manifest(layout.manifest, RunManifest), hashes)
    _check_digest(run, result, layout.manifest, run.manifest, run.manifest.heartbeat)
    _check_directories(run, result)
    _check_evaluations(run, result)
    _check_completeness(run, result)
    check_inputs(run, result)
    check_log(run, result)
    check_data(run, result)
    _check_duplicate_files(run, result)
    if hashes:
        _check_trajectory(run, result, progress)
    # The last, since it names all files that no check before it has accounted for.
    check_rest(run, result)
    return result


def _check_digest(
    run: AuditedRun, result: Audit, path: Path, manifest: Manifest, written: str
) -> None:
    """Compare the text of a manifest with the digest that it states; `written` is its time."""
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
    """Find damage of checkpoints, their state and snapshots; add those that are intact to `run`."""
    layout = run.layout
    for step in codec.listed_steps(layout.checkpoints):
        checkpoint = _check_step(run, result, layout.checkpoints, CheckpointManifest, step)
        if checkpoint is not None:
            run.checkpoints[step] = checkpoint
        # A damaged state does not spoil the weights beside it: the checkpoint stays intact.
        if layout.state(step).is_dir():
            _check_sealed(run, result, layout.state(step), StateManifest, step)
    for step in codec.listed_steps(layout.snapshots):
        snapshot = _check_step(run, result, layout.snapshots, SnapshotManifest, step)
        if snapshot is not None:
            run.snapshots[step] = snapshot


def _check_step(
    run: AuditedRun, result: Audit, parent: Path, manifest_type: type[_OfRun], step: int
) -> _OfRun | None:
    """Find damage of a checkpoint or snapshot, and return its manifest if there is none."""
    directory = parent / step_name(step)
    result.directories += 1
    before = len(result.findings)
    manifest = _check_sealed(run, result, directory, manifest_type, step)
    if manifest is None:
        return None
    if manifest.run != run.manifest.name:
        result.add("damage", directory / MANIFEST, f'is of the run "{manifest.run}"')
    return manifest if len(result.findings) == before else None


def _check_sealed(
    run: AuditedRun, result: Audit, directory: Path, manifest_type: type[_Sealed], step: int
) -> _Sealed | None:
    """Compare a directory with its manifest, and return this, or None if it is not readable."""
    path = directory / MANIFEST
    if directory.is_symlink():
        result.add("damage", directory, LINKED_STEP)
        return None
    try:
        manifest = codec.read_manifest(path, manifest_type)
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
    """Find evaluations that do not parse or do not belong to their step, run or file name."""
    evaluations = run.layout.evaluations
    for step in codec.listed_steps(evaluations):
        for path in sorted((evaluations / step_name(step)).glob("*.json")):
            result.evaluations += 1
            manifest = _check_evaluation(run, result, path)
            sentence = None if manifest is None else _misplaced(run, step, path, manifest)
            if sentence is not None:
                result.add("damage", path, sentence)
    if run.layout.reference.is_file():
        _check_evaluation(run, result, run.layout.reference)


def _check_evaluation(run: AuditedRun, result: Audit, path: Path) -> EvaluationManifest | None:
    """Compare an evaluation with its digest, and return it, or None if it does not parse."""
    try:
        manifest = codec.read_manifest(path, EvaluationManifest)
    except DamagedError as error:
        result.add("damage", path, without_path(str(error), path))
        return None
    _check_digest(run, result, path, manifest, manifest.created)
    return manifest


def _misplaced(
    run: AuditedRun, step: int, path: Path, manifest: EvaluationManifest
) -> str | None:
    """Say why an evaluation does not belong where it lies; None if it does."""
    if (manifest.step, manifest.run) != (step, run.manifest.name):
        return f'is of step {manifest.step} of the run "{manifest.run}"'
    expected = run.layout.evaluation(step, manifest.task, manifest.settings)
    if path != expected:
        return f"its task and settings belong to {expected.name}: it was altered or renamed"
    return None


def _check_completeness(run: AuditedRun, result: Audit) -> None:
    """Find missing steps and parts: by run.json, by the manifests, and by the regular spacing."""
    layout, newest = run.layout, run.manifest.step
    if newest not in run.checkpoints and newest not in codec.listed_steps(layout.checkpoints):
        sentence = "run.json says that this step was saved"
        result.add("missing", layout.checkpoint(newest), sentence)
    for step, manifest in run.snapshots.items():
        if manifest.weights == "checkpoint" and step not in run.checkpoints:
            sentence = "the snapshot of the step refers to it for its weights"
            result.add("missing", layout.checkpoint(step), sentence)
    _check_observations(run, result)
    listed = set(codec.listed_steps(layout.snapshots))
    for step in sorted(expected_steps(listed, newest, run.manifest.total_steps) - listed):
        sentence = "was not observed, though the steps around it were"
        result.add("missing", layout.snapshot(step), sentence)


def _check_observations(run: AuditedRun, result: Audit) -> None:
    """Find snapshots whose manifest does not mention an observation that others have."""
    observations = {step: _observations(manifest) for step, manifest in run.snapshots.items()}
    expected = set[str]().union(*observations.values())
    for step, manifest in run.snapshots.items():
        for name in sorted(expected - observations[step] - set(manifest.absent)):
            path = run.layout.snapshot(step) / MANIFEST
            result.add("missing", path, f"names no {name}, which other steps have")


def _observations(manifest: SnapshotManifest) -> set[str]:
    return {observation_name(entry.split, entry.kind) for entry in manifest.observed}


def expected_steps(observed: set[int], newest: int, total: int) -> set[int]:
    """Return the steps up to `newest` of the regular schedule that `observed` follows.

    A schedule consists of step 0, the multiples of a stride, the last step, and powers of two below
    the stride if steps 1 and 2 were observed. The stride is the greatest common divisor of the
    observed steps that are none of the others. It is believed if it has two such steps, explains
    all observed steps and lacks fewer steps than it explains; otherwise only the ends are expected.
    """
    if not observed:
        return set()
    powers = _powers_of_two(total) if {1, 2} <= observed else set()
    regular = observed - {0, total} - powers
    ends = {0, total} if newest >= total else {0}
    stride = math.gcd(*regular)
    # A stride far too small for what was observed is refused before its multiples are listed.
    if len(regular) < 2 or newest // stride > 2 * len(observed):
        return ends
    multiples = set(range(0, newest + 1, stride))
    early = {power for power in powers if power < min(stride, newest)}
    due = ends | multiples | early
    return due if _is_believed(due, observed, total) else {0}


def _is_believed(due: set[int], observed: set[int], total: int) -> bool:
    """Whether a schedule explains all observed steps and lacks fewer steps than it explains."""
    # The last step belongs to every schedule.
    explains_all = observed - {total} <= due
    return explains_all and len(due - observed) < len(due & observed)


def _powers_of_two(most: int) -> set[int]:
    return {2**exponent for exponent in range(most.bit_length())}


def _check_duplicate_files(run: AuditedRun, result: Audit) -> None:
    """Find observations that are bit-identical in two steps, by the sha256 of their manifests."""
    # Weights are compared tensor by tensor, and a batch of rows may recur.
    passed_over = (SNAPSHOT_WEIGHTS, TRAIN_BATCH)
    seen: dict[tuple[str, str], list[int]] = defaultdict(list)
    for step, manifest in sorted(run.snapshots.items()):
        for file, entry in manifest.files.items():
            if file not in passed_over:
                seen[file, entry.sha256].append(step)
    for (file, _), (first, *later) in seen.items():
        for step in later:
            path = run.layout.snapshot(step) / file
            result.add("duplicate", path, f"is bit-identical to that of step {first}")


def _check_trajectory(run: AuditedRun, result: Audit, progress: Progress | None) -> None:
    """Find steps whose weights repeat those of others or are out of line with them."""
    paths = {}
    for step in sorted({*run.checkpoints, *run.snapshots}):
        path = _weights(run, step)
        if path is not None:
            paths[step] = path
    for check, step, sentence in walk(paths, _still(run), progress):
        result.add(check, paths[step], sentence)


def _weights(run: AuditedRun, step: int) -> Path | None:
    """Return the file that holds the weights of a step."""
    if step in run.checkpoints:
        return run.layout.checkpoint(step) / MODEL_WEIGHTS
    if step in run.snapshots and run.snapshots[step].weights == "snapshot":
        return run.layout.snapshot(step) / SNAPSHOT_WEIGHTS
    return None


def _still(run: AuditedRun) -> set[int]:
    """Return the updates whose learning rate was 0, which leave the weights unchanged."""
    return {row["step"] for row in read_rows(run.layout.metrics) if row.get("lr") == 0}
