"""A run directory written by pico-train (shared/CONTRACT.md), read tensor by tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from pico_contract import codec
from pico_contract.digests import session_sha256
from pico_contract.errors import DamagedError, UserError, did_you_mean
from pico_contract.kinds import MICROBATCH_GRADIENTS
from pico_contract.layout import MANIFEST, MODEL_WEIGHTS, SNAPSHOT_WEIGHTS, RunLayout, step_name
from pico_contract.metrics_log import read_rows
from pico_contract.schema import (
    CheckpointManifest,
    DirectoryManifest,
    RowMap,
    RunManifest,
    SnapshotManifest,
    TensorSet,
)
from pico_contract.verify import altered_since

from pico_analyze.sources.base import check_kind, no_module, no_step
from pico_analyze.sources.tensor_names import is_tied, modules_of, stored_name

M = TypeVar("M", CheckpointManifest, SnapshotManifest)
_OPEN_FILES = 64  # an open file is one memory map and one descriptor


def open_run(path: str | Path) -> Run:
    """Open the run directory `path`: manifests are read now, tensors when they are requested.

    Raises:
        UserError: no such directory, or it is not a run; names the nearest run beside it.
        DamagedError: run.json does not parse or has a newer major version.
    """
    return Run(check_run(path))


def check_run(path: str | Path) -> RunLayout:
    """Return the paths of the run directory `path`.

    Raises:
        UserError: it is not a run; names the nearest run beside it.
    """
    layout = RunLayout(Path(path))
    if layout.manifest.is_file():
        return layout
    hint = did_you_mean(layout.root.name, _runs_beside(layout))
    what = "is not a run: it has no run.json" if layout.root.is_dir() else "does not exist"
    raise UserError(f"{layout.root} {what}{hint}")


def _runs_beside(layout: RunLayout) -> list[str]:
    parent = layout.root.resolve().parent
    if not parent.is_dir():
        return []
    return [path.name for path in parent.iterdir() if RunLayout(path).manifest.is_file()]


class Run:
    """The observed steps of one run.

    Directories that are not intact are left out and listed in `damaged`.

    Attributes:
        manifest: run.json.
        steps: the steps with an intact snapshot or checkpoint, ascending.
        damaged: step -> sentences that say which file is not intact, and how.
    """

    def __init__(self, layout: RunLayout) -> None:
        self.layout = layout
        self.origin = str(layout.root.resolve())
        self.manifest = codec.read_manifest(layout.manifest, RunManifest)
        self.name = self.manifest.name
        self.model = self.manifest.model
        self.damaged: dict[int, list[str]] = {}
        self._checkpoints = self._read_intact(layout.checkpoints, CheckpointManifest)
        self._snapshots = self._read_intact(layout.snapshots, SnapshotManifest)
        intact = {*self._checkpoints, *self._snapshots}
        self.steps = sorted(intact)
        # A file is opened once and kept open, since each module of it is read separately.
        self._file = lru_cache(_OPEN_FILES)(codec.TensorFile)

    def tokens(self, step: int) -> int | None:
        """Return the tokens consumed up to and including update `step`; None if not recorded."""
        if step in self._checkpoints:
            return self._checkpoints[step].tokens
        # Before the first update nothing is consumed, whether or not metrics say so.
        return 0 if step == 0 else self._logged_tokens.get(step)

    def splits(self, step: int, kind: str) -> list[str | None]:
        """List the splits (train, val) that `step` has of `kind`.

        The list is [None] for weights, and [] if there are none.
        """
        check_kind(kind)
        if kind == "weights":
            return [None] if self._weights_files(step) else []
        return [observed.split for observed in self._observed(step) if observed.kind == kind]

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """List the modules with a tensor of `kind`, by Hugging Face name; raises as `tensor`."""
        stored: dict[str, None] = {}  # an ordered set
        for _, names in self._stored(step, kind, split):
            stored.update(dict.fromkeys(names))
        return modules_of(stored, is_tied(self.model, kind))

    def tensor(
        self, step: int, kind: str, module: str, split: str | None = None
    ) -> torch.Tensor:
        """Read one tensor in its stored dtype, to the CPU.

        Args:
            kind: weights (out, in) or (width,), gradients (of the same shapes), activations (rows,
                out) or microbatch_gradients (m, and the shape of a gradient).
            module: its Hugging Face name, or an alias of earlier Pico code. With tied embeddings
                `lm_head` is the embedding.
            split: may be left out if there is only one.

        Raises:
            UserError: the step, kind, split or module is absent; names the nearest one.
            DamagedError: the file is not readable, or its bytes are not those that its manifest was
                sealed with.
        """
        tied = is_tied(self.model, kind)
        for path, stored in self._stored(step, kind, split):
            name = stored_name(module, stored, tied)
            if name is not None:
                return self._read(path, name, step)
        # An altered header may have lost the name: that is damage, not a wrong request.
        for path, _ in self._stored(step, kind, split):
            self._verify(path, step)
        known = self.modules(step, kind, split)
        raise no_module(path, kind, module, known)

    def is_lost(self, step: int, kind: str) -> bool:
        """Return whether `kind` of a step may lie in a directory that is not intact."""
        return step in self.damaged and (kind == "weights" or step not in self._snapshots)

    def n_tokens(self, step: int, split: str | None) -> list[int]:
        """Return the terms of the loss in each micro-batch whose gradient is stored; [] if none."""
        for observed in self._observed(step):
            if (observed.kind, observed.split) == (MICROBATCH_GRADIENTS, split):
                return observed.terms
        return []

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """Return the sha256 of each file with `kind` of `step`, as its manifest says.

        Raises:
            UserError: there is no such file.
        """
        if kind == "weights":
            files = [path.name for path in self._weights_files(step)]
        else:
            of_kind = [each for each in self._observed(step) if each.kind == kind]
            files = [each.file for each in of_kind if each.split == split]
        # The manifests are believed here; `tensor` compares the bytes with them.
        hashes: list[str] = []
        for file in files:
            hashes += self._sealed(file, step)
        if not hashes:
            where = f" of split {split}" if split else ""
            raise UserError(f"step {step} of {self.layout.root} has no {kind}{where}")
        return " ".join(hashes)

    def probe(self, step: int) -> dict[str, str]:
        """Identify the token of each row of activations at `step`.

        Two steps have the same tokens if the values agree: the sha256 of the probe's token ids, and
        the row map.

        Raises:
            DamagedError: probe.safetensors is not readable.
        """
        identity = {"probe": self._probe} if self._probe else {}
        row_map = self._row_map(step)
        if row_map is not None:
            identity["row map"] = json.dumps(vars(row_map))
        return identity

    def positions(self, step: int) -> int:
        """Return the rows of activations that belong to one probe row, by the row map."""
        row_map = self._row_map(step)
        return max(len(row_map.positions), 1) if row_map is not None else 1

    def _row_map(self, step: int) -> RowMap | None:
        snapshot = self._snapshots.get(step)
        return snapshot.row_map if snapshot is not None else None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which opens the files again by their paths."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = lru_cache(_OPEN_FILES)(codec.TensorFile)

    def _read_intact(self, parent: Path, schema: type[M]) -> dict[int, M]:
        """Read the manifests of intact directories, and note the others in `damaged`."""
        manifests = {}
        for step in codec.listed_steps(parent):
            directory = parent / step_name(step)
            damage = codec.verify_directory(directory, schema)
            if damage is None:
                manifests[step] = codec.read_manifest(directory / MANIFEST, schema)
            else:
                # An intact snapshot of the step can still be read beside a damaged checkpoint.
                self.damaged.setdefault(step, []).append(damage)
        return manifests

    def _sealed(self, file: str, step: int) -> list[str]:
        """List the sha256 that the manifests of a step give a file."""
        manifests: list[DirectoryManifest] = []
        if step in self._snapshots:
            manifests.append(self._snapshots[step])
        if step in self._checkpoints:
            manifests.append(self._checkpoints[step])
        return [manifest.files[file].sha256 for manifest in manifests if file in manifest.files]

    def _read(self, path: Path, name: str, step: int) -> torch.Tensor:
        """Read a tensor from the bytes that the manifest seals."""
        # Checked on both sides, since the file may be replaced while it is read.
        self._verify(path, step)
        tensor = self._file(path).get(name)
        self._verify(path, step)
        return tensor

    def _verify(self, path: Path, step: int) -> None:
        """Compare a file with the sha256 in its manifest; an unchanged file is hashed only once."""
        _check_bytes(path, self._sealed(path.name, step)[0], "its manifest")

    def _observed(self, step: int) -> list[TensorSet]:
        return self._snapshots[step].observed if step in self._snapshots else []

    def _weights_files(self, step: int) -> list[Path]:
        """List the files with weights of a step, that of the effective weights first."""
        files = []
        snapshot = self._snapshots.get(step)
        uses_checkpoint = snapshot is None or snapshot.weights == "checkpoint"
        if uses_checkpoint and step in self._checkpoints:
            files.append(self.layout.checkpoint(step) / MODEL_WEIGHTS)
        # Beside a checkpoint the snapshot may have the additional tensors of low-rank modules.
        if snapshot is not None and SNAPSHOT_WEIGHTS in snapshot.files:
            files.append(self.layout.snapshot(step) / SNAPSHOT_WEIGHTS)
        return files

    def _stored(
        self, step: int, kind: str, split: str | None
    ) -> Iterator[tuple[Path, list[str]]]:
        """Yield each file with `kind` of `step`, at least one, and the names of its tensors."""
        check_kind(kind)
        if step not in self.steps:
            raise no_step(self.layout.root, step, self.steps, self.damaged)
        if kind == "weights":
            paths = self._weights_files(step)
            if not paths:
                raise UserError(f"step {step} of {self.layout.root} has no intact weights")
            for path in paths:
                yield path, self._file(path).names
        else:
            observed = self._one_set(step, kind, split)
            yield self.layout.snapshot(step) / observed.file, list(observed.tensors)

    def _one_set(self, step: int, kind: str, split: str | None) -> TensorSet:
        """Choose the set of tensors of a kind; UserError unless there is exactly one."""
        place = f"step {step} of {self.layout.root}"
        observed = self._observed(step)
        of_kind = [each for each in observed if each.kind == kind]
        chosen = [each for each in of_kind if split in (None, each.split)]
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            raise UserError(f"{place} has {kind} of several splits: say split train or val")
        where = f" of split {split}" if split else ""
        available = ["weights"]
        for each in observed:
            available.append(f"{each.kind} of {each.split}")
        raise UserError(f"{place} has no {kind}{where}; it has {', '.join(available)}")

    @cached_property
    def _probe(self) -> str | None:
        """The sha256 of the probe's token ids, or None if the run has no probe."""
        path = self.layout.probe
        if not path.is_file():
            return None
        sealed = getattr(self.manifest, "digests", {}).get(path.name)
        if sealed:
            _check_bytes(path, sealed, self.layout.manifest.name)
        tokens = codec.TensorFile(path).get("tokens").contiguous()
        # The shape too: the same ids in rows of another length are another probe.
        shape = repr(tuple(tokens.shape)).encode()
        return hashlib.sha256(shape + tokens.numpy().tobytes()).hexdigest()

    @cached_property
    def _logged_tokens(self) -> dict[int, int]:
        rows = read_rows(self.layout.metrics)
        return {row["step"]: row["tokens"] for row in rows if "tokens" in row}


def _check_bytes(path: Path, sealed: str, where: str) -> None:
    """Raise DamagedError if a file does not have the sha256 that `where` says."""
    try:
        sha256 = session_sha256(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror or error})") from None
    if sha256 != sealed:
        raise DamagedError(f"{path} {altered_since(where)}")
