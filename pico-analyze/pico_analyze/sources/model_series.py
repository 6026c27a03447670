"""A series of models, one folder (or hub revision) a step: weights of any architecture.

Which step a model is, its name says: see `pico_analyze.sources.step_names`. A module is the name of
a two-dimensional floating-point tensor without `.weight`; names of Hugging Face's Llama and of
earlier Pico code become the former. Other tensors (norms, biases, masks) are not offered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
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
    """The step that the name of a folder or revision says; None if it says none."""
    found = read_name(name)
    return None if found is None else found.step


def is_model(folder: Path) -> bool:
    """Whether a folder looks like a model: it has a configuration, or weights in whatever
    format."""
    return folder.is_dir() and formats.is_model(
        [path.name for path in folder.iterdir() if path.is_file()]
    )


def step_folders(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Split models by whether their names say a step: those that do, by name, and a note on each
    that does not."""
    models = sorted(path for path in paths if is_model(path))
    steps = [path for path in models if read_name(path.name) is not None]
    return steps, [f"left out: {no_step_in(str(path))}" for path in models if path not in steps]


def open_folders(
    folders: Sequence[str | Path],
    name: str | None = None,
    origin: str | None = None,
    notes: Sequence[str] = (),
) -> Series:
    """A series of local model folders; its name is that of the directory around the first, unless
    given.

    One folder alone may have any name, and is step 0 if that says none. Headers are read now, so
    that `damaged` says which steps cannot be read, and `notes` which are in a format that is not
    read.

    Args:
        origin: what the series was opened from; the folders by default.
        notes: what to say of the series beside what is found here.

    Raises:
        UserError: no folder, one that is not there, one whose name says no step, or two of the same
            step.
    """
    if not folders:
        raise UserError("a series of models needs at least one folder")
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"{folder} is not a folder")
    steps = steps_by_name([str(folder) for folder in folders])
    return _opened(steps, name or _around(Path(folders[0])), origin or _origin(folders), notes)


def open_one(folder: Path, notes: Sequence[str] = ()) -> Series:
    """A series of one model: the step that the folder's name says, else step 0 under the folder's
    own name."""
    absolute = os.path.abspath(folder)  # "." has no name
    if read_name(Path(absolute).name) is not None:
        return open_folders([absolute], notes=notes)
    only = StepName(absolute, 0, "updates", None, "", "*")
    said = f"{folder} is one model whose name says no step: it is step 0"
    return _opened({0: only}, folder.resolve().name, _origin([folder]), [*notes, said])


def _opened(steps: Mapping[int, StepName], name: str, origin: str, notes: Sequence[str]) -> Series:
    files = OpenFiles()
    models = {step: Model(LocalFiles(Path(one.name), files)) for step, one in steps.items()}
    series = Series(name, models, {step: one.tokens for step, one in steps.items()}, origin)
    series.notes += [*notes, *unit_note(steps.values())]
    series.check()
    return series


def _around(folder: Path) -> str:
    return folder.resolve().parent.name


def _origin(folders: Sequence[str | Path]) -> str:
    return " ".join(sorted(str(Path(folder).resolve()) for folder in folders))


class Series:
    """Weights of several models as the steps of one run.

    Attributes:
        steps: ascending, without those that are known to be damaged.
        damaged: step -> sentences; grows where a step is first read late, as one of the hub is.
        origin: what the series was opened from, which tells it from another of the same name.
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
        """Steps that are not known to be damaged, ascending."""
        return [step for step in self.models if step not in self.damaged]

    @cached_property
    def model(self) -> Mapping[str, Any]:
        """Geometry by the last config.json that can be read; {} where there is none, and then no
        circuits."""
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
        """Geometry by the config.json of one step; that of the series where the step has none that
        can be read."""
        with contextlib.suppress(DamagedError, KeyError):
            return geometry(self.models[step].config()) or self.model
        return self.model

    def tensors(self, step: int) -> dict[str, tuple[int, ...]]:
        """Every stored tensor of `step` with its shape, also those that are not offered as
        modules."""
        return {names.canonical(stored.name): stored.shape for stored in self.models[step].stored()}

    def check(self) -> None:
        """Read the headers of every step now. Those that cannot be read are damaged; other formats
        are left out."""
        unread: list[str] = []
        for step in list(self.models):
            try:
                self._modules(step)
            except UnsupportedError as error:
                unread.append(str(error))
                del self.models[step]
            except DamagedError as error:
                self.damaged[step] = [str(error)]
        if not self.steps:
            why = (
                next((sentence for found in self.damaged.values() for sentence in found), None)
                or unread[0]
            )
            raise UserError(f"no step of {self.name} can be read: {why}")
        self.notes += [f"left out: {sentence}" for sentence in unread]

    def tokens(self, step: int) -> int | None:
        """Training tokens as the name of the step says them; None if it does not."""
        return self._tokens.get(step)

    def splits(self, step: int, kind: str) -> list[str | None]:
        """[None] for weights, which is all that a model holds."""
        check_kind(kind)
        return [None] if kind == "weights" and step in self.steps else []

    def modules(self, step: int, kind: str, split: str | None = None) -> list[str]:
        """Modules of which `step` holds a matrix; errors as `tensor`."""
        self._check(step, kind)
        modules = list(self._modules(step))
        if self.model.get("tie_word_embeddings") and _EMBEDDING in modules and _HEAD not in modules:
            modules.append(_HEAD)
        return modules

    def tensor(self, step: int, kind: str, module: str, split: str | None = None) -> torch.Tensor:
        """The weight matrix of a module as it is stored, (out, in) wherever the architecture uses
        linear layers.

        Raises:
            UserError: the step, kind or module is not there; names the nearest that is.
            DamagedError: the file is not readable.
        """
        self._check(step, kind)
        available = self._modules(step)
        name = names.canonical(module).removesuffix(".weight")
        if name == _HEAD and _HEAD not in available and self.model.get("tie_word_embeddings"):
            name = _EMBEDDING
        tensor = self.models[step].read(name)
        if tensor is None:
            raise no_module(self.models[step].place, kind, name, available)
        return tensor

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """Changes whenever the weights of `step` do; errors as `tensor`."""
        self._check(step, kind)
        return self.models[step].fingerprint()

    def content_id(self, step: int) -> str:
        """Equal for two steps if the bytes of their weights are; a series of the hub downloads
        nothing for it.

        Raises:
            DamagedError: the step has no weights that can be read.
        """
        return self.models[step].content_id()

    def _check(self, step: int, kind: str) -> None:
        check_kind(kind)
        if step not in self.steps:
            raise no_step(self.name, step, self.steps, self.damaged)
        if kind != "weights":
            raise UserError(f"{self.models[step].place} has no {kind}: a model holds weights alone")

    def _modules(self, step: int) -> Mapping[str, StoredMatrix]:
        return self.models[step].modules
