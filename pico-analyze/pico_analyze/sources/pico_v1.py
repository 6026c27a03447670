"""A run of the earlier pico-train 1.x: `checkpoints/step_<n>/learning_dynamics/<split>_<kind>.pt`
and its YAML.

The pickles are opened with `torch.load(weights_only=True)` and mapped into memory, so that one
tensor is read at a time. A file that holds anything but tensors by name is refused by name, and the
rest of the run is still read.
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
"""Either file holds the weights of theta_t; where both are there, the first is read."""


def is_legacy(path: Path) -> bool:
    """Whether `path` is the directory of such a run."""
    return any(path.glob("checkpoints/step_*/learning_dynamics/*.pt"))


def open_legacy(path: str | Path) -> LegacyRun:
    """Open the run directory `path`; every file of tensors is checked now, tensors are read when
    they are asked for.

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
    """The observed steps of one run. Files that cannot be read are left out and listed in
    `damaged`.

    Values are what that version stored: its validation gradients are sums over sub-batches, not
    means, and on one device its activation rows are permuted within a batch, in the same way at
    every step.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.resolve().name
        self.model = _geometry(root / "training_config.yaml")
        self.damaged: dict[int, list[str]] = {}
        self._file = lru_cache(_OPEN_FILES)(pickled.tensors)
        self._checked = CheckedReads()
        self.origin = str(root.resolve())
        self._stored: dict[tuple[int, str, str], list[str]] = {}  # (step, kind, split) -> modules
        for directory in root.glob("checkpoints/step_*"):
            matched = _STEP.fullmatch(directory.name)
            if matched and directory == self._directory(int(matched[1])):
                self._list(int(matched[1]))
        self.steps = sorted({step for step, _, _ in self._stored})

    def tokens(self, step: int) -> int | None:
        """0 at step 0, else None: these runs do not record it."""
        return 0 if step == 0 else None

    def splits(self, step: int, kind: str) -> list[str | None]:
        """Splits (train, val) of which `step` holds `kind`; [None] for weights, [] where it holds
        none."""
        check_kind(kind)
        available: list[str | None] = [
            split for split in SPLITS if (step, kind, split) in self._stored
        ]
        return [None] if kind == "weights" and available else available

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """Modules of which `step` holds a tensor of `kind`, by Hugging Face name; errors as
        `tensor`."""
        return self._stored[step, kind, self._split(step, kind, split)]

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        """One tensor in its stored dtype, on CPU: weights and gradients (out, in), activations
        (rows, out).

        `module` may be a Hugging Face name or an earlier one. `split` may be left out where only
        one is there.

        Raises:
            UserError: the step, kind, split or module is not there; names the nearest that is.
            DamagedError: the file is no longer readable.
        """
        path = self._path(step, kind, self._split(step, kind, split))
        stored = self._file(path)
        name = names.canonical(module).removesuffix(".weight")
        if name not in stored:
            raise no_module(path, kind, name, stored)
        self._checked.check(path)
        tensor = stored[name].detach().clone()
        self._checked.check(path)
        return tensor

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """sha256 of the file that holds `kind` of `step`; errors as `tensor`."""
        return self._checked.sha256(self._path(step, kind, self._split(step, kind, split)))

    def is_lost(self, step: int, kind: str) -> bool:
        """Whether a file of `kind` of a step is there, whatever can be read of it."""
        return any(self._path(step, kind, split).is_file() for split in SPLITS)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; files are opened again by their paths."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = lru_cache(_OPEN_FILES)(pickled.tensors)

    def _list(self, step: int) -> None:
        for kind in KINDS:
            for split in _WEIGHT_SPLITS if kind == "weights" else SPLITS:
                path = self._path(step, kind, split)
                if not path.is_file() or (kind == "weights" and self.splits(step, kind)):
                    continue
                try:
                    self._stored[step, kind, split] = list(self._file(path))
                except DamagedError as error:
                    self.damaged.setdefault(step, []).append(str(error))

    def _split(self, step: int, kind: str, split: str | None) -> str:
        """The split in the name of the file that holds what is asked for."""
        if step not in self.steps:
            raise no_step(self.root, step, self.steps, self.damaged)
        available = self.splits(step, kind)
        if kind == "weights" and available:
            return next(given for given in _WEIGHT_SPLITS if (step, kind, given) in self._stored)
        chosen = [given for given in available if given is not None and split in (None, given)]
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            raise UserError(
                f"step {step} of {self.root} has {kind} of several splits: say split train or val"
            )
        there = ", ".join(f"{k} of {s}" for at, k, s in self._stored if at == step)
        raise UserError(
            f"step {step} of {self.root} has no {kind}{f' of split {split}' if split else ''}; it has {there}"
        )

    def _directory(self, step: int) -> Path:
        return self.root / "checkpoints" / f"step_{step}"

    def _path(self, step: int, kind: str, split: str) -> Path:
        return self._directory(step) / "learning_dynamics" / f"{split}_{kind}.pt"


def _geometry(path: Path) -> Mapping[str, Any]:
    """Of the section `model` of training_config.yaml; {} where there is no such file, and then no
    circuits."""
    if not path.is_file():
        return {}
    try:
        model = strict_yaml.read_mapping(path).get("model")
    except UserError as error:
        raise DamagedError(str(error)) from None
    if not isinstance(model, dict):
        raise DamagedError(f'{path} should hold a section "model" with the geometry')
    return geometry(model)
