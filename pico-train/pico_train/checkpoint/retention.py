"""Remove the checkpoints that a run's policy does not keep, without losing an observation."""

from __future__ import annotations

import math
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.layout import MANIFEST, MODEL_WEIGHTS, SNAPSHOT_WEIGHTS, RunLayout, temporary
from pico_contract.schema import CheckpointManifest, SnapshotManifest, StateManifest
from pydantic import Field

from pico_train.config import Section

_FLOAT_BYTES = 4


class KeepConfig(Section):
    """Policy on the checkpoints that stay: all by default.

    Step 0, the last step and the one to continue from always stay.
    """

    last: int | None = Field(None, ge=1)
    """Number of newest checkpoints that stay; null is 1 if `every` is set, and all otherwise."""
    every: int | None = Field(None, ge=1)
    """Checkpoints at multiples of this step stay as well; null is off."""
    state: int | None = Field(None, ge=1)
    """Number of newest checkpoints that keep state/, about two thirds of the bytes; null is the
    same number as `last`."""

    def models(self, steps: Sequence[int], final_step: int) -> list[int]:
        """Choose from `steps` (ascending) those whose model stays, in a run of `final_step` updates."""
        if self._newest_count is None:
            return list(steps)
        stay = {0, final_step, *steps[-self._newest_count :]}
        # step % inf is step itself, so that without `every` only step 0 is a multiple.
        interval = self.every or math.inf
        return [step for step in steps if step in stay or step % interval == 0]

    def states(self, steps: Sequence[int]) -> list[int]:
        """Choose from `steps` (ascending), whose models stay, those that keep state/."""
        count = self.state or self._newest_count
        return list(steps if count is None else steps[-count:])

    @property
    def _newest_count(self) -> int | None:
        return self.last or (1 if self.every else None)


@dataclass(frozen=True)
class PlannedRemoval:
    """The planned removal of a checkpoint, or of its state/ alone."""

    step: int
    path: Path
    whole: bool
    size: int
    """Bytes that the removal frees."""
    moved: int = 0
    """Bytes of observed weights that move into the snapshot first."""

    def __str__(self) -> str:
        part = "the model" if self.whole else f"{self.path.name}/"
        remark = ", its observed weights moved into the snapshot" if self.moved else ""
        return f"step {self.step}: {part}{remark}"


def planned_removals(
    layout: RunLayout, keep: KeepConfig, newest: int, last: int
) -> list[PlannedRemoval]:
    """Plan what `keep` removes from a run of `last` updates that would continue from `newest`.

    Removals of state/ come first, each group in ascending order. Damaged checkpoints are left
    alone, and so are those beyond `newest`, which training will replace.
    """
    if keep == KeepConfig():
        return []
    # Only sizes are compared, because this runs after every save and hashing is slow.
    intact = codec.intact_steps(layout.checkpoints, CheckpointManifest)
    steps = [step for step in intact if step <= newest]
    models = {newest, *keep.models(steps, last)}
    with_state = [step for step in steps if layout.state(step).is_dir()]
    continuable = [step for step in with_state if _has_intact_state(layout, step)]
    # Only intact state counts: a damaged one must not push out one that can be continued from.
    states = {newest, *keep.states([step for step in continuable if step in models])}
    plan = []
    for step in with_state:
        if step not in states:
            plan.append(_planned_removal(layout, step, layout.state(step)))
    for step in steps:
        if step not in models:
            plan.append(_planned_removal(layout, step, layout.checkpoint(step)))
    return plan


def _has_intact_state(layout: RunLayout, step: int) -> bool:
    return codec.verify_directory(layout.state(step), StateManifest) is None


def remove(
    layout: RunLayout, planned: Sequence[PlannedRemoval]
) -> Iterator[tuple[PlannedRemoval, str | None]]:
    """Carry out `planned` removals; the caller must hold the run's lock.

    Observed weights move into the snapshot before their checkpoint goes. Yields each removal with
    None, or with a sentence on the damage for which it stays. A crash between any two operations
    loses nothing: planning again then gives what is left to do.
    """
    for removal in planned:
        problem = None
        try:
            if removal.whole:
                _move_weights(layout, removal.step)
            _discard(removal.path, layout.checkpoints)
        except DamagedError as error:
            problem = f"checkpoint {removal.step} stays: {error}"
        yield removal, problem


def prune_checkpoints(layout: RunLayout, keep: KeepConfig, newest: int, last: int) -> list[str]:
    """Apply `keep` to a run; return a sentence for each checkpoint that stays but should not."""
    done = remove(layout, planned_removals(layout, keep, newest, last))
    return [problem for _, problem in done if problem is not None]


def _planned_removal(layout: RunLayout, step: int, path: Path) -> PlannedRemoval:
    whole = path == layout.checkpoint(step)
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return PlannedRemoval(step, path, whole, size, _moved_bytes(layout, step) if whole else 0)


def _moved_bytes(layout: RunLayout, step: int) -> int:
    try:
        snapshot = _waiting(layout, step)
        file = codec.TensorFile(layout.checkpoint(step) / MODEL_WEIGHTS)
    except DamagedError:
        # `remove` reports the damage.
        return 0
    if snapshot is None:
        return 0
    values = sum(math.prod(file.shape(name)) for name in _observed(snapshot, file))
    return _FLOAT_BYTES * values


def _waiting(layout: RunLayout, step: int) -> SnapshotManifest | None:
    """Return the manifest of the snapshot at `step` if it leaves its weights to the checkpoint.

    Raises:
        DamagedError: the snapshot is damaged.
    """
    directory = layout.snapshot(step)
    if not directory.is_dir():
        return None
    problem = codec.verify_directory(directory, SnapshotManifest)
    if problem is not None:
        raise DamagedError(problem)
    manifest = codec.read_manifest(directory / MANIFEST, SnapshotManifest)
    return manifest if manifest.weights == "checkpoint" else None


def _observed(snapshot: SnapshotManifest, file: codec.TensorFile) -> list[str]:
    """List the observed weights in a model's file, which stores tied ones once."""
    chosen = {f"{name}.weight" for name in snapshot.modules}
    return [name for name in file.names if name in chosen]


def _move_weights(layout: RunLayout, step: int) -> None:
    """Move observed weights from the checkpoint of `step` into its snapshot, if it has one.

    They stay float32, as in the checkpoint. A new snapshot replaces the old one; its other files
    are hard links to the same bytes, neither copied nor read.

    Raises:
        DamagedError: the checkpoint's model or the snapshot is damaged; both stay unchanged.
    """
    manifest = _waiting(layout, step)
    if manifest is None:
        return
    # Weights that were damaged must not become the only copy of an observation.
    problem = codec.verify_directory(layout.checkpoint(step), CheckpointManifest, hashes=True)
    if problem is not None:
        raise DamagedError(problem)
    snapshot = layout.snapshot(step)
    model = codec.TensorFile(layout.checkpoint(step) / MODEL_WEIGHTS)
    weights = {name: model.get(name) for name in _observed(manifest, model)}
    stored = snapshot / SNAPSHOT_WEIGHTS
    if stored.is_file() and SNAPSHOT_WEIGHTS in manifest.files:
        # The method's own tensors, which no checkpoint stores, are in this file already.
        weights |= codec.read_tensors(stored)
    known = {file: entry for file, entry in manifest.files.items() if file != SNAPSHOT_WEIGHTS}
    manifest.weights = "snapshot"
    with codec.publish(snapshot) as draft:
        # Links first and the manifest last, as every directory is published.
        for file in known:
            os.link(snapshot / file, draft / file)
        codec.save_tensors(draft / SNAPSHOT_WEIGHTS, weights)
        codec.seal(draft, manifest, known=known)


def _discard(path: Path, parent: Path) -> None:
    """Delete the directory `path` in such a way that no reader ever sees a part of it.

    It is renamed first. After a crash, the rest of it in `parent` is an ordinary leftover.
    """
    aside = temporary(parent / f"{path.parent.name}-{path.name}", uuid.uuid4().hex[:8])
    codec.on_stage("before_discard", path)
    # The rename must be durable before files disappear from the renamed directory.
    path.rename(aside)
    codec.sync_directory(path.parent)
    codec.on_stage("after_discard", path)
    shutil.rmtree(aside)
