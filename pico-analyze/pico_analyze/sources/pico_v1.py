"""A run of the earlier pico-train 1.x, with tensors in pickles and a configuration in YAML.

The tensors are `checkpoints/step_<n>/learning_dynamics/<split>_<kind>.pt`. The pickles are opened
with `torch.load(weights_only=True)` and mapped into memory, so that one tensor is read at a time. A
file that contains anything but tensors by name is refused by name; the rest of the run is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pico_contract import names, strict_yaml
from pico_contract.errors import DamagedError, UserError
from pico_contract.kinds import KINDS, SPLITS

from pico_analyze.sources import pickled
from pico_analyze.sources.base import check_kind, no_module, no_step
from pico_analyze.sources.files import CheckedReads
from pico_analyze.sources.model_config import geometry

_STEP = re.compile(r"step_(\d+)")
_OPEN_FILES = 64
_WEIGHT_SPLITS = ("val", "train")
"""Both files contain the weights of a step; the first that exists is read."""


def is_legacy(path: Path) -> bool:
    """Return whether `path` is the directory of a run of pico-train 1.x."""
    return any(path.glob("checkpoints/step_*/learning_dynamics/*.pt"))


def open_legacy(path: str | Path) -> LegacyRun:
    """Open a run directory: every file of tensors is checked now, tensors are read on request.

    Raises:
        UserError: no such directory, or nothing in it was written by pico-train 1.x.
    """
    root = Path(path)
    if not is_legacy(root):
        raise UserError(
            f"{root} is not a run of pico-train 1.x: no checkpoints/step_<n>/learning_dynamics/*.pt in it"
        )
    return LegacyRun(root)


class LegacyRun:
    """The observed steps of one run of pico-train 1.x.

    Files that cannot be read are left out and listed in `damaged`. Values are as that version
    stored them: its validation gradients are sums over sub-batches, not means, and on one device
    its activation rows are permuted within a batch, in the same way at every step.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.resolve().name
        self.origin = str(root.resolve())
        self.model = _geometry(root / "training_config.yaml")
        self.damaged: dict[int, list[str]] = {}
        self._file = lru_cache(_OPEN_FILES)(pickled.tensors)
        self._checked = CheckedReads()
        self._stored: dict[
            tuple[int, str, str], list[str]
        ] = {}  # (step, kind, split) -> modules
        for step in self._listed_steps():
            self._read_modules(step)
        self.steps = sorted({step for step, _, _ in self._stored})

    def tokens(self, step: int) -> int | None:
        """Return 0 at step 0, else None: these runs do not record it."""
        return 0 if step == 0 else None

    def splits(self, step: int, kind: str) -> list[str | None]:
        """List the splits (train, val) that `step` has of `kind`.

        The list is [None] for weights, and [] if there are none.
        """
        check_kind(kind)
        available = self._splits_on_disk(step, kind)
        return [None] if kind == "weights" and available else [*available]

    def _splits_on_disk(self, step: int, kind: str) -> list[str]:
        return [split for split in SPLITS if (step, kind, split) in self._stored]

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """List the modules with a tensor of `kind`, by Hugging Face name; raises as `tensor`."""
        return self._stored[step, kind, self._split(step, kind, split)]

    def tensor(
        self, step: int, kind: str, module: str, split: str | None = None
    ) -> torch.Tensor:
        """Read one tensor in its stored dtype, to the CPU.

        Weights and gradients are (out, in), activations (rows, out).

        Args:
            module: its Hugging Face name, or an earlier one.
            split: may be left out if there is only one.

        Raises:
            UserError: the step, kind, split or module is absent; names the nearest one.
            DamagedError: the file is no longer readable.
        """
        chosen_split = self._split(step, kind, split)
        path = self._path(step, kind, chosen_split)
        stored = self._file(path)
        name = names.canonical(module).removesuffix(".weight")
        if name not in stored:
            raise no_module(path, kind, name, stored)
        # Mapped memory shows later changes of the file, so it is copied between two checks.
        self._checked.check(path)
        tensor = stored[name].detach().clone()
        self._checked.check(path)
        return tensor

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """Return the sha256 of the file with `kind` of `step`; errors as for `tensor`."""
        return self._checked.sha256(self._path(step, kind, self._split(step, kind, split)))

    def is_lost(self, step: int, kind: str) -> bool:
        """Return whether a file of `kind` of a step exists, readable or not."""
        return any(self._path(step, kind, split).is_file() for split in SPLITS)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which opens the files again by their paths."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = lru_cache(_OPEN_FILES)(pickled.tensors)

    def _listed_steps(self) -> list[int]:
        """List the steps whose directories are named as pico-train 1.x names them."""
        steps = []
        for directory in self.root.glob("checkpoints/step_*"):
            match = _STEP.fullmatch(directory.name)
            if match and directory == self._directory(int(match[1])):  # not `step_007`
                steps.append(int(match[1]))
        return steps

    def _read_modules(self, step: int) -> None:
        """Read the modules of every file of a step; unreadable files are noted in `damaged`."""
        for kind in KINDS:
            for split in _WEIGHT_SPLITS if kind == "weights" else SPLITS:
                path = self._path(step, kind, split)
                # The second file of weights repeats the first.
                if not path.is_file() or (kind == "weights" and self.splits(step, kind)):
                    continue
                try:
                    self._stored[step, kind, split] = list(self._file(path))
                except DamagedError as error:
                    self.damaged.setdefault(step, []).append(str(error))

    def _split(self, step: int, kind: str, split: str | None) -> str:
        """Return the split in the name of the file with `kind`; UserError if there is none."""
        if step not in self.steps:
            raise no_step(self.root, step, self.steps, self.damaged)
        check_kind(kind)
        available = self._splits_on_disk(step, kind)
        if kind == "weights" and available:
            return available[0]  # only one of the two files is read
        chosen = [known for known in available if split in (None, known)]
        if len(chosen) == 1:
            return chosen[0]
        place = f"step {step} of {self.root}"
        if chosen:
            raise UserError(f"{place} has {kind} of several splits: say split train or val")
        where = f" of split {split}" if split else ""
        keys = [key for key in self._stored if key[0] == step]
        stored = ", ".join(f"{known} of {its_split}" for _, known, its_split in keys)
        raise UserError(f"{place} has no {kind}{where}; it has {stored}")

    def _directory(self, step: int) -> Path:
        return self.root / "checkpoints" / f"step_{step}"

    def _path(self, step: int, kind: str, split: str) -> Path:
        return self._directory(step) / "learning_dynamics" / f"{split}_{kind}.pt"


def _geometry(path: Path) -> Mapping[str, Any]:
    """Read the geometry from the section `model` of training_config.yaml.

    It is {} if there is no such file; then the run has no circuits.
    """
    if not path.is_file():
        return {}
    try:
        model = strict_yaml.read_mapping(path).get("model")
    except UserError as error:
        raise DamagedError(str(error)) from None
    if not isinstance(model, dict):
        raise DamagedError(f'{path} should hold a section "model" with the geometry')
    return geometry(model)
