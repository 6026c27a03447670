"""A run that earlier Pico code published on the hub: models, and beside them what it observed, as
files of tensors.

Its steps are commits of one branch, titled `Saving HF Model -- Step N` and `Saving Learning
Dynamics Data (train|val) -- Step N`, or folders `NAME/checkpoints/step_N/`. A commit also holds
what the commits before it wrote, so that of each only the files that its title names are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from pico_contract import names
from pico_contract.errors import UserError

from pico_analyze.sources import pickled
from pico_analyze.sources.base import SPLITS, check_kind, no_module, no_step
from pico_analyze.sources.files import digest
from pico_analyze.sources.hub_series import HubSeries
from pico_analyze.sources.hub_store import PREFIX, Commit, Store
from pico_analyze.sources.model import Model

KINDS = ("weights", "gradients", "activations")
_DYNAMICS = "learning_dynamics"
_TITLE = re.compile(r"Saving (?:HF Model|Learning Dynamics Data \((train|val)\)) -- Step (\d+)")
_FOLDER = re.compile(r"(?P<run>.*?)/?checkpoints/step_(?P<step>\d+)")
_WEIGHT_SPLITS = ("val", "train")
"""Either file holds the weights of a step; if both are there, the first is read."""


@dataclass
class SavedCommits:
    """Which commit holds what, by the titles of commits.

    Attributes:
        weights: step -> commit.
        dynamics: (step, split) -> commit.
        notes: a sentence on steps that were saved more than once.
    """

    weights: dict[int, str] = field(default_factory=dict)
    dynamics: dict[tuple[int, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.weights or self.dynamics)


def saved_commits(commits: Iterable[Commit]) -> SavedCommits:
    """Read the steps from titles of commits, the newest first; of a step saved twice the newer
    commit counts."""
    saved = SavedCommits()
    again: set[int] = set()
    for commit in commits:
        title = _TITLE.fullmatch(commit.title.strip())
        if title is None:
            continue
        split, step = title[1], int(title[2])
        known = step in saved.weights if split is None else (step, split) in saved.dynamics
        if known:
            again.add(step)
        elif split is None:
            saved.weights[step] = commit.id
        else:
            saved.dynamics[step, split] = commit.id
    if again:
        saved.notes.append(
            f"saved more than once, of which the last counts: step {', '.join(map(str, sorted(again)))}"
        )
    return saved


def step_folders(paths: Iterable[str], inside: str = "") -> dict[str, dict[int, str]]:
    """Run -> step -> folder, for each folder `RUN/checkpoints/step_N` that holds files.

    Args:
        inside: a run, or a folder around runs; all of them by default.
    """
    found: dict[str, dict[int, str]] = {}
    for folder in {str(parent) for path in paths for parent in PurePosixPath(path).parents}:
        match = _FOLDER.fullmatch(folder)
        if match and (not inside or f"{match['run']}/".startswith(f"{inside}/")):
            found.setdefault(match["run"], {})[int(match["step"])] = folder
    return found


@dataclass(frozen=True)
class DynamicsFile:
    """A file of tensors by module name, at one commit."""

    store: Store
    commit: str
    path: str

    @property
    def place(self) -> str:
        """Where it lies, for messages."""
        return f"{PREFIX}{self.store.repo}@{self.commit}/{self.path}"

    @property
    def identity(self) -> str:
        """Equal for two files if their bytes are; nothing is downloaded."""
        return self.store.tree(self.commit)[self.path].identity

    @property
    def size(self) -> int:
        """Bytes, as the hub lists them."""
        return self.store.tree(self.commit)[self.path].size

    def modules(self) -> list[str]:
        """Names of its modules, after downloading it if it is not there."""
        return self.store.read(self.commit, self.path, lambda path: list(pickled.tensors(path)))

    def tensor(self, module: str) -> torch.Tensor | None:
        """The tensor of a module, after downloading the file if it is not there; None if there is
        none."""
        return self.store.read(self.commit, self.path, lambda path: _one(path, module))


def _one(path: Path, module: str) -> torch.Tensor | None:
    found = pickled.tensors(path).get(module)
    return None if found is None else found.detach().clone()


Dynamics = Mapping[tuple[int, str], Mapping[str, DynamicsFile]]
"""(step, split) -> kind -> the file that holds it."""


def dynamics_of(places: Mapping[tuple[int, str], tuple[str, str]], store: Store) -> Dynamics:
    """The files of tensors that are there, at (commit, folder) for each step and split."""
    found = {}
    for (step, split), (commit, folder) in places.items():
        paths = {
            kind: str(PurePosixPath(folder, _DYNAMICS, f"{split}_{kind}.pt")) for kind in KINDS
        }
        held = {
            kind: DynamicsFile(store, commit, p)
            for kind, p in paths.items()
            if p in store.tree(commit)
        }
        if held:
            found[step, split] = held
    return found


class PublishedRun(HubSeries):
    """Weights of models, and gradients, activations and weights of what was observed.

    Values are what that version stored: its validation gradients are sums over sub-batches, not
    means, and on one device its activation rows are permuted within a batch, in the same way at
    every step. The modules of a kind are those of the first file of it that is read, since its
    configuration observes the same ones at every step.
    """

    def __init__(
        self, name: str, store: Store, models: Mapping[int, Model], dynamics: Dynamics, origin: str
    ) -> None:
        super().__init__(name, store, models, {0: 0}, origin)
        self._dynamics = dict(dynamics)
        self._observed: dict[tuple[str, str], list[str]] = {}  # (kind, split) -> modules

    @property
    def steps(self) -> list[int]:
        """Steps with a model or with something observed, ascending."""
        return sorted({*super().steps, *(step for step, _ in self._dynamics)})

    def splits(self, step: int, kind: str) -> list[str | None]:
        """Splits of which `step` holds `kind`; [None] for weights, [] if it holds none."""
        check_kind(kind)
        if kind == "weights":
            return [None] if step in self.models or self._file(step, kind, None) else []
        return [split for split in SPLITS if kind in self._dynamics.get((step, split), {})]

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """Modules of which `step` holds a tensor of `kind`; errors as `tensor`."""
        if kind == "weights" and step in self.models:
            return super().modules(step, kind)
        file, of = self._chosen(step, kind, split)
        if (kind, of) not in self._observed:
            self._observed[kind, of] = file.modules()
        return list(self._observed[kind, of])

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        """One tensor in its stored dtype, on CPU: weights and gradients (out, in), activations
        (rows, out).

        Raises:
            UserError: the step, kind, split or module is not there; names the nearest that is.
            DamagedError: the file is not readable, or is refused since it holds more than tensors.
        """
        if kind == "weights" and step in self.models:
            return super().tensor(step, kind, module)
        file, _ = self._chosen(step, kind, split)
        name = names.canonical(module).removesuffix(".weight")
        tensor = file.tensor(name)
        if tensor is None:
            raise no_module(file.place, kind, name, self.modules(step, kind, split))
        return tensor

    def tensors(self, step: int) -> dict[str, tuple[int, ...]]:
        """Every stored tensor of `step` with its shape; of what was observed the names alone are
        known."""
        return (
            super().tensors(step)
            if step in self.models
            else dict.fromkeys(self.modules(step, "weights"), ())
        )

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """Changes whenever the file that holds `kind` of `step` does; errors as `tensor`."""
        if kind == "weights" and step in self.models:
            return super().fingerprint(step, kind)
        return self._chosen(step, kind, split)[0].identity

    def content_id(self, step: int) -> str:
        """Equal for two steps if the bytes of their weights are; nothing is downloaded."""
        if step in self.models:
            return super().content_id(step)
        return digest([self._chosen(step, "weights", None)[0].identity])

    def size(self, step: int) -> int:
        """Bytes of the files of a step, as the hub lists them."""
        files = [
            file for split in SPLITS for file in self._dynamics.get((step, split), {}).values()
        ]
        return sum(file.size for file in files) + (
            self.models[step].size() if step in self.models else 0
        )

    def _leave_out(self, step: int, sentence: str) -> None:
        """Without its model a step still has what was observed, often weights as well."""
        del self.models[step]
        if step not in self.steps:
            self.notes.append(f"left out: {sentence}")

    def _file(self, step: int, kind: str, split: str | None) -> DynamicsFile | None:
        order: Sequence[str] = _WEIGHT_SPLITS if kind == "weights" else [split] if split else []
        held = (self._dynamics.get((step, one), {}).get(kind) for one in order)
        return next((file for file in held if file is not None), None)

    def _chosen(self, step: int, kind: str, split: str | None) -> tuple[DynamicsFile, str]:
        """The file that holds what is asked for, and its split."""
        check_kind(kind)
        if step not in self.steps:
            raise no_step(self.name, step, self.steps, self.damaged)
        held = [one for one in self.splits(step, kind) if one is not None]
        if kind != "weights" and split is None and len(held) > 1:
            raise UserError(
                f"step {step} of {self.name} has {kind} of several splits: say split train or val"
            )
        file = self._file(step, kind, split or next(iter(held), None))
        if file is None:
            raise UserError(
                f"step {step} of {self.name} has no {kind}{f' of split {split}' if split else ''}"
            )
        return file, PurePosixPath(file.path).name.partition("_")[0]
