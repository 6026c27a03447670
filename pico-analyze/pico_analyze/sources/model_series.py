"""A series of models, one folder (or hub revision) a step: weights of any architecture.

The step of a model is read from its name: see `pico_analyze.sources.step_names`. A module is the
name of a two-dimensional floating-point tensor without `.weight`; names of earlier Pico code are
translated to those of Hugging Face's Llama. Other tensors (norms, biases, masks) are not offered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pico_contract import names
from pico_contract.errors import DamagedError, UserError

from pico_analyze.sources import formats
from pico_analyze.sources.base import check_kind, no_module, no_step
from pico_analyze.sources.files import LocalFiles, OpenFiles
from pico_analyze.sources.formats import UnsupportedError
from pico_analyze.sources.model import Model, StoredMatrix
from pico_analyze.sources.model_config import geometry
from pico_analyze.sources.step_names import (
    StepName,
    no_step_in,
    read_name,
    steps_by_name,
    unit_note,
)

_HEAD, _EMBEDDING = "lm_head", "model.embed_tokens"


def step_of(name: str) -> int | None:
    """Read the step from the name of a folder or revision; None if it says none."""
    step_name = read_name(name)
    return None if step_name is None else step_name.step


def is_model(folder: Path) -> bool:
    """Return whether a folder has a configuration, or weights in any format."""
    if not folder.is_dir():
        return False
    return formats.is_model([path.name for path in folder.iterdir() if path.is_file()])


def step_folders(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """List the models whose names say a step, by name, and a note on each other model."""
    steps, notes = [], []
    for path in sorted(path for path in paths if is_model(path)):
        if read_name(path.name) is not None:
            steps.append(path)
        else:
            notes.append(f"left out: {no_step_in(str(path))}")
    return steps, notes


def open_folders(
    folders: Sequence[str | Path],
    name: str | None = None,
    origin: str | None = None,
    notes: Sequence[str] = (),
) -> Series:
    """Open local model folders as a series.

    Headers are read now: then `damaged` says which steps cannot be read, and `notes` says which are
    in an unsupported format.

    Args:
        name: the name of the series; by default that of the directory around the first folder.
        origin: what the series was opened from; by default the folders.
        notes: further notes on the series.

    Raises:
        UserError: no folder, one that does not exist, one whose name says no step, or two of the
            same step.
    """
    if not folders:
        raise UserError("a series of models needs at least one folder")
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"{folder} is not a folder")
    steps = steps_by_name([str(folder) for folder in folders])
    return _opened(steps, name or _around(Path(folders[0])), origin or _origin(folders), notes)


def open_one(folder: Path, notes: Sequence[str] = ()) -> Series:
    """Open one model as a series, as step 0 if the name of the folder says no step."""
    absolute = os.path.abspath(folder)  # "." has no name
    if read_name(Path(absolute).name) is not None:
        return open_folders([absolute], notes=notes)
    only = StepName(absolute, 0, "updates", None, "", "*")
    note = f"{folder} is one model whose name says no step: it is step 0"
    return _opened({0: only}, folder.resolve().name, _origin([folder]), [*notes, note])


def _opened(
    steps: Mapping[int, StepName], name: str, origin: str, notes: Sequence[str]
) -> Series:
    # One pool for all steps bounds the number of open files.
    opened = OpenFiles()
    models: dict[int, Model] = {}
    tokens: dict[int, int | None] = {}
    for step, folder in steps.items():
        files = LocalFiles(Path(folder.name), opened)
        models[step] = Model(files)
        tokens[step] = folder.tokens
    series = Series(name, models, tokens, origin)
    series.notes += [*notes, *unit_note(steps.values())]
    series.check()
    return series


def _around(folder: Path) -> str:
    return folder.resolve().parent.name


def _origin(folders: Sequence[str | Path]) -> str:
    return " ".join(sorted(str(Path(folder).resolve()) for folder in folders))


class Series:
    """The weights of several models as the steps of one run.

    Attributes:
        damaged: step -> sentences. It grows while steps of the hub are read for the first time.
        origin: what the series was opened from, which distinguishes it from another of one name.
        notes: sentences on what was left out, and why.
    """

    def __init__(
        self,
        name: str,
        models: Mapping[int, Model],
        tokens: Mapping[int, int | None] | None = None,
        origin: str = "",
    ) -> None:
        self.name = name
        self.models = dict(models)
        self.damaged: dict[int, list[str]] = {}
        self.origin = origin or name
        self.notes: list[str] = []
        self._tokens = dict(tokens or {})

    @property
    def steps(self) -> list[int]:
        """The steps that are not known to be damaged, ascending."""
        return [step for step in self.models if step not in self.damaged]

    @cached_property
    def model(self) -> Mapping[str, Any]:
        """The geometry by the last config.json that can be read.

        It is {} if there is none; then the series has no circuits.
        """
        damages: list[DamagedError] = []
        for model in reversed(self.models.values()):
            try:
                if config := model.config():
                    return geometry(config)
            except DamagedError as error:
                damages.append(error)
        if damages:
            raise damages[0]
        return {}

    def model_at(self, step: int) -> Mapping[str, Any]:
        """Return the geometry by the config.json of one step, or else that of the series."""
        with contextlib.suppress(DamagedError, KeyError):
            return geometry(self.models[step].config()) or self.model
        return self.model

    def tensors(self, step: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every stored tensor of `step`, modules or not."""
        return {
            names.canonical(stored.name): stored.shape for stored in self.models[step].stored()
        }

    def check(self) -> None:
        """Read the headers of every step now.

        Unreadable steps become `damaged`; steps in an unsupported format are removed and noted.

        Raises:
            UserError: no step can be read.
        """
        unsupported: list[str] = []
        # A copy, since steps are removed in the loop
        for step in list(self.models):
            try:
                self._modules(step)
            except UnsupportedError as error:
                unsupported.append(str(error))
                del self.models[step]
            except DamagedError as error:
                self.damaged[step] = [str(error)]
        if not self.steps:
            reasons = [*chain.from_iterable(self.damaged.values()), *unsupported]
            raise UserError(f"no step of {self.name} can be read: {reasons[0]}")
        self.notes += [f"left out: {reason}" for reason in unsupported]

    def tokens(self, step: int) -> int | None:
        """Return the training tokens, read from the name of the step; None if it says none."""
        return self._tokens.get(step)

    def splits(self, step: int, kind: str) -> list[str | None]:
        """List the splits of `kind`: [None] for weights, the only kind of a model, else []."""
        check_kind(kind)
        return [None] if kind == "weights" and step in self.steps else []

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """List the modules of which `step` has a matrix; errors as for `tensor`."""
        self._check(step, kind)
        modules = list(self._modules(step))
        # A tied head is not stored, but it is a module with a matrix.
        if self._is_tied and _EMBEDDING in modules and _HEAD not in modules:
            modules.append(_HEAD)
        return modules

    def tensor(
        self, step: int, kind: str, module: str, split: str | None = None
    ) -> torch.Tensor:
        """Read the weight matrix of a module as it is stored, (out, in) for linear layers.

        Raises:
            UserError: the step, kind or module is absent; names the nearest one.
            DamagedError: the file is not readable.
        """
        self._check(step, kind)
        model = self.models[step]
        available = self._modules(step)
        name = names.canonical(module)
        name = name.removesuffix(".weight")
        if name == _HEAD and _HEAD not in available and self._is_tied:
            name = _EMBEDDING
        tensor = model.read(name)
        if tensor is None:
            raise no_module(model.place, kind, name, available)
        return tensor

    @property
    def _is_tied(self) -> bool:
        return bool(self.model.get("tie_word_embeddings"))

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """Identify the weights of `step` by their bytes; errors as for `tensor`."""
        self._check(step, kind)
        return self.models[step].fingerprint()

    def content_id(self, step: int) -> str:
        """Return a text that is equal for two steps if the bytes of their weights are equal.

        A series of the hub downloads nothing for it.

        Raises:
            DamagedError: the step has no weights that can be read.
        """
        return self.models[step].content_id()

    def _check(self, step: int, kind: str) -> None:
        """Raise UserError unless the step is there and the kind is weights."""
        check_kind(kind)
        if step not in self.steps:
            raise no_step(self.name, step, self.steps, self.damaged)
        if kind != "weights":
            raise UserError(
                f"{self.models[step].place} has no {kind}: a model holds weights alone"
            )

    def _modules(self, step: int) -> Mapping[str, StoredMatrix]:
        return self.models[step].modules
