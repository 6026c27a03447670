"""A run that earlier Pico code published on the hub: models, and files of observed tensors.

Its steps are commits of one branch, titled `Saving HF Model -- Step N` and `Saving Learning
Dynamics Data (train|val) -- Step N`, or folders `NAME/checkpoints/step_N/`. A commit also contains
the files of earlier commits, so only the files that its title names are read from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from pico_contract import names
from pico_contract.errors import UserError
from pico_contract.kinds import ACTIVATIONS, GRADIENTS, SPLITS, WEIGHTS

from pico_analyze.sources import pickled
from pico_analyze.sources.base import check_kind, no_module, no_step
from pico_analyze.sources.files import digest
from pico_analyze.sources.hub_series import HubSeries
from pico_analyze.sources.hub_store import PREFIX, Commit, Store
from pico_analyze.sources.model import Model

_KINDS = (WEIGHTS, GRADIENTS, ACTIVATIONS)
_DYNAMICS = "learning_dynamics"
_TITLE = re.compile(r"Saving (?:HF Model|Learning Dynamics Data \((train|val)\)) -- Step (\d+)")
_FOLDER = re.compile(r"(?P<run>.*?)/?checkpoints/step_(?P<step>\d+)")
_WEIGHT_SPLITS = ("val", "train")
"""Both files contain the weights of a step; the first that exists is read."""


@dataclass
class SavedCommits:
    """The commits that saved each step, by their titles.

    Attributes:
        weights: step -> commit.
        dynamics: (step, split) -> commit.
        notes: a sentence on the steps that were saved more than once.
    """

    weights: dict[int, str] = field(default_factory=dict)
    dynamics: dict[tuple[int, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.weights or self.dynamics)


def saved_commits(commits: Iterable[Commit]) -> SavedCommits:
    """Read the steps from the titles of commits, given the newest first.

    If a step was saved more than once, its newest commit counts.
    """
    saved = SavedCommits()
    repeated: set[int] = set()
    for commit in commits:
        title = _TITLE.fullmatch(commit.title.strip())
        if title is None:
            continue
        split, step = title[1], int(title[2])
        if split is None:
            newest = saved.weights.setdefault(step, commit.id)
        else:
            newest = saved.dynamics.setdefault((step, split), commit.id)
        # Commits come newest first, so that the first one seen of a step counts.
        if newest != commit.id:
            repeated.add(step)
    if repeated:
        steps = ", ".join(map(str, sorted(repeated)))
        saved.notes.append(f"saved more than once, of which the last counts: step {steps}")
    return saved


def step_folders(paths: Iterable[str], inside: str = "") -> dict[str, dict[int, str]]:
    """Return run -> step -> folder for each folder `RUN/checkpoints/step_N` with files.

    Args:
        paths: the files of the repository.
        inside: a run, or a folder around runs; by default all runs.
    """
    folders: set[str] = set()
    for path in paths:
        folders.update(map(str, PurePosixPath(path).parents))
    runs: dict[str, dict[int, str]] = {}
    for folder in folders:
        match = _FOLDER.fullmatch(folder)
        if match is None:
            continue
        run, step = match["run"], int(match["step"])
        if not inside or f"{run}/".startswith(f"{inside}/"):
            runs.setdefault(run, {})[step] = folder
    return runs


@dataclass(frozen=True)
class DynamicsFile:
    """A file of tensors by module name, at one commit."""

    store: Store
    commit: str
    path: str

    @property
    def place(self) -> str:
        """The address of the file, for messages."""
        return f"{PREFIX}{self.store.repo}@{self.commit}/{self.path}"

    @property
    def identity(self) -> str:
        """A text that is equal for two files if their bytes are; nothing is downloaded."""
        return self.store.tree(self.commit)[self.path].identity

    @property
    def size(self) -> int:
        """The size in bytes, as the hub lists it."""
        return self.store.tree(self.commit)[self.path].size

    def modules(self) -> list[str]:
        """List its modules, after downloading it unless it is on disk."""
        return self.store.read(self.commit, self.path, lambda path: list(pickled.tensors(path)))

    def tensor(self, module: str) -> torch.Tensor | None:
        """Read the tensor of a module, after downloading the file unless it is on disk.

        None if there is none.
        """
        return self.store.read(self.commit, self.path, lambda path: _tensor(path, module))


def _tensor(path: Path, module: str) -> torch.Tensor | None:
    tensor = pickled.tensors(path).get(module)
    # A copy, since the original may be mapped from a file that is deleted later.
    return None if tensor is None else tensor.detach().clone()


Dynamics = Mapping[tuple[int, str], Mapping[str, DynamicsFile]]
"""(step, split) -> kind -> the file that contains it."""


def dynamics_of(places: Mapping[tuple[int, str], tuple[str, str]], store: Store) -> Dynamics:
    """List the files of observed tensors.

    Args:
        places: (step, split) -> (commit, folder).
    """
    dynamics: dict[tuple[int, str], dict[str, DynamicsFile]] = {}
    for (step, split), (commit, folder) in places.items():
        tree = store.tree(commit)
        files = {}
        for kind in _KINDS:
            file = f"{split}_{kind}.pt"
            path = str(PurePosixPath(folder, _DYNAMICS, file))
            if path in tree:
                files[kind] = DynamicsFile(store, commit, path)
        if files:
            dynamics[step, split] = files
    return dynamics


class PublishedRun(HubSeries):
    """A run with the weights of its models, and with observed gradients, activations and weights.

    Values are as that version stored them: its validation gradients are sums over sub-batches, not
    means, and on one device its activation rows are permuted within a batch, in the same way at
    every step. The modules of a kind are read from the first file that is opened, since that
    version observes the same modules at every step.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        models: Mapping[int, Model],
        dynamics: Dynamics,
        origin: str,
    ) -> None:
        # No tokens are recorded, but before the first update they are 0.
        super().__init__(name, store, models, {0: 0}, origin)
        self._dynamics = dict(dynamics)
        self._observed: dict[tuple[str, str], list[str]] = {}  # (kind, split) -> modules

    @property
    def steps(self) -> list[int]:
        """The steps with a model or with observed tensors, ascending."""
        return sorted({*super().steps, *(step for step, _ in self._dynamics)})

    def splits(self, step: int, kind: str) -> list[str | None]:
        """List the splits that `step` has of `kind`: [None] for weights, [] if there are none."""
        check_kind(kind)
        if kind == "weights":
            return [None] if step in self.models or self._file(step, kind, None) else []
        return [split for split in SPLITS if kind in self._dynamics.get((step, split), {})]

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """List the modules with a tensor of `kind` at `step`; errors as for `tensor`."""
        if self._is_of_model(step, kind):
            return super().modules(step, kind)
        file, chosen_split = self._choose(step, kind, split)
        key = (kind, chosen_split)
        if key not in self._observed:
            self._observed[key] = file.modules()
        return list(self._observed[key])

    def tensor(
        self, step: int, kind: str, module: str, split: str | None = None
    ) -> torch.Tensor:
        """Read one tensor in its stored dtype, to the CPU.

        Weights and gradients are (out, in), activations (rows, out).

        Raises:
            UserError: the step, kind, split or module is absent; names the nearest one.
            DamagedError: the file is not readable, or contains more than tensors.
        """
        if self._is_of_model(step, kind):
            return super().tensor(step, kind, module)
        file, _ = self._choose(step, kind, split)
        name = names.canonical(module)
        name = name.removesuffix(".weight")
        tensor = file.tensor(name)
        if tensor is None:
            raise no_module(file.place, kind, name, self.modules(step, kind, split))
        return tensor

    def tensors(self, step: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every stored tensor of `step`; () for observed tensors."""
        if step in self.models:
            return super().tensors(step)
        # Only the names are known without loading a whole pickle.
        return dict.fromkeys(self.modules(step, "weights"), ())

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """Identify the bytes of the file with `kind` of `step`; errors as for `tensor`."""
        if self._is_of_model(step, kind):
            return super().fingerprint(step, kind)
        return self._choose(step, kind, split)[0].identity

    def content_id(self, step: int) -> str:
        """Return a text that is equal for two steps if the bytes of their weights are equal."""
        if step in self.models:
            return super().content_id(step)
        return digest([self._choose(step, "weights", None)[0].identity])

    def size(self, step: int) -> int:
        """Return the bytes of the files of a step, as the hub lists them."""
        size = self.models[step].size() if step in self.models else 0
        for split in SPLITS:
            size += sum(file.size for file in self._dynamics.get((step, split), {}).values())
        return size

    def _leave_out(self, step: int, sentence: str) -> None:
        del self.models[step]
        # Without its model a step still has its observed tensors, often including weights.
        if step not in self.steps:
            self.notes.append(f"left out: {sentence}")

    def _is_of_model(self, step: int, kind: str) -> bool:
        return kind == "weights" and step in self.models

    def _file(self, step: int, kind: str, split: str | None) -> DynamicsFile | None:
        """Find the observed file with `kind` of a split; None if there is none."""
        one_split = [known for known in SPLITS if known == split]
        for candidate in _WEIGHT_SPLITS if kind == "weights" else one_split:
            file = self._dynamics.get((step, candidate), {}).get(kind)
            if file is not None:
                return file
        return None

    def _choose(self, step: int, kind: str, split: str | None) -> tuple[DynamicsFile, str]:
        """Return the file with `kind` of a split, and that split; UserError if there is none."""
        check_kind(kind)
        if step not in self.steps:
            raise no_step(self.name, step, self.steps, self.damaged)
        place = f"step {step} of {self.name}"
        available = self.splits(step, kind)
        if split is None and len(available) > 1:
            raise UserError(f"{place} has {kind} of several splits: say split train or val")
        if split is None and available:
            split = available[0]
        file = self._file(step, kind, split)
        if file is None:
            where = f" of split {split}" if split else ""
            raise UserError(f"{place} has no {kind}{where}")
        return file, PurePosixPath(file.path).name.partition("_")[0]
