"""Keep policies: which checkpoints of a run stay, and how the others go without an observation
being lost."""

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


class KeepConfig(Section):
    """Which checkpoints stay: all by default. Step 0, the last step and the one to continue from
    always do."""

    last: int | None = Field(None, ge=1)
    """Newest checkpoints that stay; null is 1 beside `every`, and without it all."""
    every: int | None = Field(None, ge=1)
    """Checkpoints of multiples of this step stay as well; null is off."""
    state: int | None = Field(None, ge=1)
    """Newest checkpoints that keep state/, about two thirds of the bytes; null is as many as `last`
    says."""

    def models(self, steps: Sequence[int], last: int) -> list[int]:
        """Of `steps` (ascending), those whose model stays, in a run of `last` updates."""
        if self._newest is None:
            return list(steps)
        newest = set(steps[-self._newest :])
        regular = self.every or math.inf
        return [
            step for step in steps if step in newest or step in (0, last) or step % regular == 0
        ]

    def states(self, steps: Sequence[int]) -> list[int]:
        """Of `steps` (ascending; their models stay), those that keep state/."""
        count = self.state or self._newest
        return list(steps if count is None else steps[-count:])

    @property
    def _newest(self) -> int | None:
        return self.last or (1 if self.every else None)


@dataclass(frozen=True)
class PlannedRemoval:
    """What goes: state/ of a checkpoint, or all of it, with its bytes and those of weights that are
    moved before."""

    step: int
    path: Path
    whole: bool
    size: int
    moved: int = 0

    def __str__(self) -> str:
        where = ", its observed weights moved into the snapshot" if self.moved else ""
        return f"step {self.step}: {'the model' if self.whole else self.path.name + '/'}{where}"


def planned_removals(
    layout: RunLayout, keep: KeepConfig, newest: int, last: int
) -> list[PlannedRemoval]:
    """What `keep` removes from a run of `last` updates that would continue from `newest`: state/
    first, ascending.

    Checkpoints that are not intact are left alone, as are those beyond `newest`, which training
    will replace.
    """
    if keep == KeepConfig():
        return []
    steps = [
        step
        for step in codec.intact_steps(layout.checkpoints, CheckpointManifest)
        if step <= newest
    ]
    models = {newest, *keep.models(steps, last)}
    with_state = [step for step in steps if layout.state(step).is_dir()]
    whole = [
        step
        for step in with_state
        if codec.verify_directory(layout.state(step), StateManifest) is None
    ]
    states = {newest, *keep.states([step for step in whole if step in models])}
    return [
        *(
            _planned_removal(layout, step, layout.state(step))
            for step in with_state
            if step not in states
        ),
        *(
            _planned_removal(layout, step, layout.checkpoint(step))
            for step in steps
            if step not in models
        ),
    ]


def remove(
    layout: RunLayout, planned: Sequence[PlannedRemoval]
) -> Iterator[tuple[PlannedRemoval, str | None]]:
    """Remove what was `planned`, each after its observed weights were moved; only the holder of the
    lock may do it.

    Gives each with None, or with the sentence that says why it stays: something of it is damaged. A
    crash between any two operations loses nothing: what is planned then is what is left to do.
    """
    for one in planned:
        problem = None
        try:
            if one.whole:
                _move_weights(layout, one.step)
            _discard(one.path, layout.checkpoints)
        except DamagedError as error:
            problem = f"checkpoint {one.step} stays: {error}"
        yield one, problem


def prune_checkpoints(layout: RunLayout, keep: KeepConfig, newest: int, last: int) -> list[str]:
    """Apply `keep`, as `planned_removals` and `remove` do; the sentences say what stays although it should
    not."""
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
        return 0  # `remove` will say so
    return (
        4 * sum(math.prod(file.shape(name)) for name in _observed(snapshot, file))
        if snapshot
        else 0
    )


def _waiting(layout: RunLayout, step: int) -> SnapshotManifest | None:
    """The snapshot whose weights the checkpoint of `step` holds, else None; DamagedError where it
    is not intact."""
    directory = layout.snapshot(step)
    if not directory.is_dir():
        return None
    problem = codec.verify_directory(directory, SnapshotManifest)
    if problem is not None:
        raise DamagedError(problem)
    manifest = codec.read_manifest(directory / MANIFEST, SnapshotManifest)
    return manifest if manifest.weights == "checkpoint" else None


def _observed(snapshot: SnapshotManifest, file: codec.TensorFile) -> list[str]:
    """Names of the observed weights in a model's file; those that are tied are there once."""
    chosen = {f"{name}.weight" for name in snapshot.modules}
    return [name for name in file.names if name in chosen]


def _move_weights(layout: RunLayout, step: int) -> None:
    """Let the snapshot of `step`, where there is one, hold its weights itself, float32 as the
    checkpoint has them.

    The snapshot is replaced by one whose other files are links to the same bytes: they are neither
    copied nor read.

    Raises:
        DamagedError: the checkpoint's model or the snapshot is not intact; both are as they were.
    """
    manifest = _waiting(layout, step)
    if manifest is None:
        return
    problem = codec.verify_directory(layout.checkpoint(step), CheckpointManifest, hashes=True)
    if problem is not None:
        raise DamagedError(problem)
    snapshot, model = (
        layout.snapshot(step),
        codec.TensorFile(layout.checkpoint(step) / MODEL_WEIGHTS),
    )
    weights = {name: model.get(name) for name in _observed(manifest, model)}
    if (snapshot / SNAPSHOT_WEIGHTS).is_file() and SNAPSHOT_WEIGHTS in manifest.files:
        weights |= codec.read_tensors(
            snapshot / SNAPSHOT_WEIGHTS
        )  # of the method, which no checkpoint holds
    known = {file: entry for file, entry in manifest.files.items() if file != SNAPSHOT_WEIGHTS}
    manifest.weights = "snapshot"
    with codec.publish(snapshot) as draft:
        for file in known:
            os.link(snapshot / file, draft / file)
        codec.save_tensors(draft / SNAPSHOT_WEIGHTS, weights)
        codec.seal(draft, manifest, known=known)


def _discard(path: Path, parent: Path) -> None:
    """Delete a directory that is whole until it is gone: what a crash leaves of it in `parent` is a
    leftover."""
    aside = temporary(parent / f"{path.parent.name}-{path.name}", uuid.uuid4().hex[:8])
    codec.on_stage("before_discard", path)
    path.rename(aside)
    codec.sync_directory(path.parent)
    codec.on_stage("after_discard", path)
    shutil.rmtree(aside)
