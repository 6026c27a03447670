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
    RunManifest,
    SnapshotManifest,
    TensorSet,
)
from pico_contract.verify import altered_since

from pico_analyze.sources.base import check_kind, no_module, no_step
from pico_analyze.sources.tensor_names import is_tied, modules_of, stored_name

M = TypeVar("M", CheckpointManifest, SnapshotManifest)
_OPEN_FILES = 64


def open_run(path: str | Path) -> Run:
    """Open the run directory `path`: manifests are read now, tensors when they are asked for.

    Raises:
        UserError: no such directory, or it is no run; names the nearest run beside it.
        DamagedError: run.json does not parse or has a newer major version.
    """
    return Run(check_run(path))


def check_run(path: str | Path) -> RunLayout:
    """The paths of the run directory `path`; UserError where it is none, with the nearest run
    beside it."""
    layout = RunLayout(Path(path))
    if not layout.manifest.is_file():
        parent = layout.root.resolve().parent
        runs = (
            [p.name for p in parent.iterdir() if RunLayout(p).manifest.is_file()]
            if parent.is_dir()
            else []
        )
        what = "is not a run: it has no run.json" if layout.root.is_dir() else "does not exist"
        raise UserError(f"{layout.root} {what}{did_you_mean(layout.root.name, runs)}")
    return layout


class Run:
    """The observed steps of one run. Directories that are not intact are left out and listed in
    `damaged`.

    Attributes:
        manifest: run.json.
        steps: steps with an intact snapshot or checkpoint, ascending.
        damaged: step -> sentences that say which file is not intact, and how.
    """

    def __init__(self, layout: RunLayout) -> None:
        self.layout = layout
        self.manifest = codec.read_manifest(layout.manifest, RunManifest)
        self.name = self.manifest.name
        self.model = self.manifest.model
        self.origin = str(layout.root.resolve())
        self.damaged: dict[int, list[str]] = {}
        self._checkpoints = self._intact(layout.checkpoints, CheckpointManifest)
        self._snapshots = self._intact(layout.snapshots, SnapshotManifest)
        self.steps = sorted({*self._checkpoints, *self._snapshots})
        self._file = lru_cache(_OPEN_FILES)(codec.TensorFile)

    def tokens(self, step: int) -> int | None:
        """Tokens consumed up to and including update `step`; None where neither checkpoint nor
        metrics say it."""
        if step in self._checkpoints:
            return self._checkpoints[step].tokens
        return 0 if step == 0 else self._logged_tokens.get(step)

    def splits(self, step: int, kind: str) -> list[str | None]:
        """Splits (train, val) of which `step` holds `kind`; [None] for weights, [] where it holds
        none."""
        check_kind(kind)
        if kind == "weights":
            return [None] if self._weights_files(step) else []
        return [observed.split for observed in self._observed(step) if observed.kind == kind]

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """Modules of which `step` holds a tensor of `kind`, by Hugging Face name; errors as
        `tensor`."""
        stored = dict.fromkeys(
            name for _, names in self._stored(step, kind, split) for name in names
        )
        return modules_of(stored, is_tied(self.model, kind))

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        """One tensor in its stored dtype, on CPU.

        `kind` is weights (out, in) or (width,), gradients (of the same shapes), activations (rows,
        out) or microbatch_gradients (m, and the shape of a gradient). `module` may be an alias of
        earlier Pico code. `split` may be left out where only one is there. With tied embeddings
        `lm_head` is the embedding.

        Raises:
            UserError: the step, kind, split or module is not there; names the nearest that is.
            DamagedError: the file is not readable, or its bytes are not those that its manifest was
                sealed with.
        """
        for path, stored in self._stored(step, kind, split):
            name = stored_name(module, stored, is_tied(self.model, kind))
            if name is not None:
                return self._read(path, name, step)
        for path, _ in self._stored(step, kind, split):
            self._verify(path, step)  # an altered header may have lost the name
        raise no_module(path, kind, module, self.modules(step, kind, split))

    def is_lost(self, step: int, kind: str) -> bool:
        """Whether `kind` of a step may lie in a directory that is not intact."""
        return step in self.damaged and (kind == "weights" or step not in self._snapshots)

    def n_tokens(self, step: int, split: str | None) -> list[int]:
        """Terms of the loss in each micro-batch whose gradients `step` holds; [] where it holds
        none."""
        found = (
            one.terms
            for one in self._observed(step)
            if (one.kind, one.split) == (MICROBATCH_GRADIENTS, split)
        )
        return next(found, [])

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """sha256 of each file that holds `kind` of `step`, as its manifest says; UserError where
        there is none."""
        if kind == "weights":
            files = [path.name for path in self._weights_files(step)]
        else:
            files = [of.file for of in self._observed(step) if (of.kind, of.split) == (kind, split)]
        found = [
            one.files[file].sha256
            for file in files
            for one in self._manifests(step)
            if file in one.files
        ]
        if not found:
            raise UserError(
                f"step {step} of {self.layout.root} has no {kind}{f' of split {split}' if split else ''}"
            )
        return " ".join(found)

    def probe(self, step: int) -> dict[str, str]:
        """What says which token each row of activations at `step` is of: sha256 of the probe's ids,
        and the row map.

        Raises:
            DamagedError: probe.safetensors is not readable.
        """
        snapshot = self._snapshots.get(step)
        rows = snapshot.row_map if snapshot is not None else None
        found = {"row map": json.dumps(vars(rows))} if rows is not None else {}
        return {"probe": self._probe, **found} if self._probe else found

    def positions(self, step: int) -> int:
        """Rows of activations that belong to one probe row, as the row map of the snapshot says."""
        snapshot = self._snapshots.get(step)
        rows = snapshot.row_map if snapshot is not None else None
        return max(len(rows.positions), 1) if rows is not None else 1

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: manifests as read here; files are opened again by their
        paths."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = lru_cache(_OPEN_FILES)(codec.TensorFile)

    def _intact(self, parent: Path, kind: type[M]) -> dict[int, M]:
        manifests = {}
        for step in codec.listed_steps(parent):
            directory = parent / step_name(step)
            sentence = codec.verify_directory(directory, kind)
            if sentence is None:
                manifests[step] = codec.read_manifest(directory / MANIFEST, kind)
            else:
                self.damaged.setdefault(step, []).append(sentence)
        return manifests

    def _manifests(self, step: int) -> list[DirectoryManifest]:
        return [
            one
            for one in (self._snapshots.get(step), self._checkpoints.get(step))
            if one is not None
        ]

    def _read(self, path: Path, name: str, step: int) -> torch.Tensor:
        """A tensor of the bytes that the manifest says, also if the file is replaced meanwhile."""
        self._verify(path, step)
        tensor = self._file(path).get(name)
        self._verify(path, step)
        return tensor

    def _verify(self, path: Path, step: int) -> None:
        """Compare a file with the sha256 in its manifest; it is read once a session for that."""
        sealed = next(
            one.files[path.name].sha256 for one in self._manifests(step) if path.name in one.files
        )
        _check_bytes(path, sealed, "its manifest")

    def _observed(self, step: int) -> list[TensorSet]:
        return self._snapshots[step].observed if step in self._snapshots else []

    def _weights_files(self, step: int) -> list[Path]:
        """Of the effective weights first; beside a checkpoint the snapshot may hold what only
        low-rank modules have."""
        snapshot = self._snapshots.get(step)
        own = snapshot is not None and SNAPSHOT_WEIGHTS in snapshot.files
        found = [self.layout.snapshot(step) / SNAPSHOT_WEIGHTS] if own else []
        if step in self._checkpoints and (snapshot is None or snapshot.weights == "checkpoint"):
            found.insert(0, self.layout.checkpoint(step) / MODEL_WEIGHTS)
        return found

    def _stored(self, step: int, kind: str, split: str | None) -> Iterator[tuple[Path, list[str]]]:
        """Each file that holds `kind` of `step`, at least one, and the names in it."""
        check_kind(kind)
        if step not in self.steps:
            raise no_step(self.layout.root, step, self.steps, self.damaged)
        if kind == "weights":
            paths = self._weights_files(step)
            if not paths:
                raise UserError(f"step {step} of {self.layout.root} has no intact weights")
            yield from ((path, self._file(path).names) for path in paths)
            return
        sets = [observed for observed in self._observed(step) if observed.kind == kind]
        chosen = [observed for observed in sets if split in (None, observed.split)]
        if len(chosen) == 1:
            yield self.layout.snapshot(step) / chosen[0].file, list(chosen[0].tensors)
            return
        if chosen:
            raise UserError(
                f"step {step} of {self.layout.root} has {kind} of several splits: say split train or val"
            )
        where = f"{kind} of split {split}" if split else kind
        there = ", ".join(
            f"{observed.kind} of {observed.split}" for observed in self._observed(step)
        )
        raise UserError(
            f"step {step} of {self.layout.root} has no {where}; it has weights{there and ', '}{there}"
        )

    @cached_property
    def _probe(self) -> str | None:
        if not self.layout.probe.is_file():
            return None
        if sealed := getattr(self.manifest, "digests", {}).get(self.layout.probe.name):
            _check_bytes(self.layout.probe, sealed, self.layout.manifest.name)
        tokens = codec.TensorFile(self.layout.probe).get("tokens")
        return hashlib.sha256(
            repr(tuple(tokens.shape)).encode() + tokens.contiguous().numpy().tobytes()
        ).hexdigest()

    @cached_property
    def _logged_tokens(self) -> dict[int, int]:
        return {
            row["step"]: row["tokens"] for row in read_rows(self.layout.metrics) if "tokens" in row
        }


def _check_bytes(path: Path, sealed: str, where: str) -> None:
    """Raise DamagedError if a file does not have the sha256 that `where` says."""
    try:
        found = session_sha256(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror or error})") from None
    if found != sealed:
        raise DamagedError(f"{path} {altered_since(where)}")
