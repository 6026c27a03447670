"""A series of models in safetensors, one folder (or hub revision) a step: weights of any architecture.

The step is read from the name of the folder or revision: the integer after the last "step" in it, else the last
integer (`step1000`, `step_1000`, `checkpoint-500`, `stage1-step1000-tokens5B`, `run/000500`).

A module is the name of a two-dimensional floating-point tensor without `.weight`; names of Hugging Face's Llama and of
earlier Pico code become the former. Other tensors (norms, biases, masks, packed integers) are not offered.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from pico_contract import names
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MODEL_CONFIG

from pico_analyze.sources import check_kind, geometry, no_module, no_step
from pico_analyze.sources.folder import Folder, OpenFiles, Stored

_FLOATS = ("F64", "F32", "F16", "BF16")
_AFTER_STEP = re.compile(r"step[_-]?(\d+)", re.IGNORECASE)
_INTEGER = re.compile(r"\d+")
_HEAD, _EMBEDDING = "lm_head", "model.embed_tokens"


class Model(Protocol):
    """The model of one step, wherever its files lie."""

    @property
    def place(self) -> str:
        """Where it lies, for messages."""

    def config(self) -> Mapping[str, Any]:
        """Its config.json; {} where there is none."""

    def stored(self) -> Sequence[Stored]:
        """Every tensor of it, from headers alone; DamagedError where they cannot be read."""

    def read(self, stored: Stored) -> torch.Tensor:
        """One tensor in its stored dtype, on CPU."""

    def fingerprint(self) -> str:
        """Changes whenever its tensors do."""


def step_of(name: str) -> int | None:
    """The step that the name of a folder or revision says, by the rule above; None where it holds no integer."""
    found = _AFTER_STEP.findall(name) or _INTEGER.findall(name)
    return int(found[-1]) if found else None


def by_step(named: Iterable[str]) -> dict[int, str]:
    """Step -> name, ascending.

    Raises:
        UserError: a name without an integer, or two that give the same step.
    """
    found: dict[int, str] = {}
    for name in named:
        step = step_of(Path(name).name)
        if step is None:
            raise UserError(f'"{name}" says no step: the name of a folder or revision should hold one, as in step1000')
        if step in found:
            raise UserError(f'"{found[step]}" and "{name}" both give step {step}: leave one of them out')
        found[step] = name
    return dict(sorted(found.items()))


def is_model(folder: Path) -> bool:
    """Whether a folder is meant as a model: it has a configuration or weights in safetensors."""
    return folder.is_dir() and ((folder / MODEL_CONFIG).is_file() or any(folder.glob("*.safetensors")))


def step_folders(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that are models and whose names hold an integer, in the order of names."""
    return sorted(path for path in paths if step_of(path.name) is not None and is_model(path))


def open_folders(folders: Sequence[str | Path], name: str | None = None) -> Series:
    """A series of local model folders; its name is that of the directory around the first, unless given.

    Headers are read now, so that `damaged` says which steps cannot be read.

    Raises:
        UserError: no folder, one that is not there, one whose name holds no integer, or two of the same step.
    """
    if not folders:
        raise UserError("a series of models needs at least one folder")
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"{folder} is not a folder")
    steps = by_step(str(folder) for folder in folders)
    files = OpenFiles()
    models = {step: Folder(Path(path), files) for step, path in steps.items()}
    series = Series(name or Path(folders[0]).resolve().parent.name, models)
    series.check()
    return series


class Series:
    """Weights of several models as the steps of one run.

    Attributes:
        steps: ascending, without those that are known to be damaged.
        damaged: step -> sentences; grows where a step is first read late, as one of the hub is.
    """

    def __init__(self, name: str, models: Mapping[int, Model]) -> None:
        self.name = name
        self.models = dict(models)
        self.damaged: dict[int, list[str]] = {}
        self._held: dict[int, dict[str, Stored]] = {}  # step -> module -> where it is

    @property
    def steps(self) -> list[int]:
        """Steps that are not known to be damaged, ascending."""
        return [step for step in self.models if step not in self.damaged]

    @cached_property
    def model(self) -> Mapping[str, Any]:
        """Geometry by the last config.json that can be read; {} where there is none, and then no circuits."""
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
        """Geometry by the config.json of one step; that of the series where the step has none that can be read."""
        with contextlib.suppress(DamagedError):
            return geometry(self.models[step].config()) or self.model
        return self.model

    def tensors(self, step: int) -> dict[str, tuple[int, ...]]:
        """Every stored tensor of `step` with its shape, also those that are not offered as modules."""
        return {names.canonical(stored.name): stored.shape for stored in self.models[step].stored()}

    def check(self) -> None:
        """Read the headers of every step now, and note in `damaged` those that cannot be read."""
        for step in self.models:
            try:
                self._modules(step)
            except DamagedError as error:
                self.damaged[step] = [str(error)]
        if not self.steps:
            raise UserError(f"no step of {self.name} can be read: {next(iter(self.damaged.values()))[0]}")

    def tokens(self, step: int) -> int | None:
        """None: a model does not say what it was trained on."""
        return None

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
        """The weight matrix of a module as it is stored, (out, in) wherever the architecture uses linear layers.

        Raises:
            UserError: the step, kind or module is not there; names the nearest that is.
            DamagedError: the file is not readable.
        """
        self._check(step, kind)
        held = self._modules(step)
        name = names.canonical(module).removesuffix(".weight")
        if name == _HEAD and _HEAD not in held and self.model.get("tie_word_embeddings"):
            name = _EMBEDDING
        if name not in held:
            raise no_module(self.models[step].place, kind, name, held)
        return self.models[step].read(held[name])

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """Changes whenever the weights of `step` do; errors as `tensor`."""
        self._check(step, kind)
        return self.models[step].fingerprint()

    def _check(self, step: int, kind: str) -> None:
        check_kind(kind)
        if step not in self.steps:
            raise no_step(self.name, step, self.steps, self.damaged)
        if kind != "weights":
            raise UserError(f"{self.models[step].place} has no {kind}: a model holds weights alone")

    def _modules(self, step: int) -> dict[str, Stored]:
        if step not in self._held:
            self._held[step] = self._list(step)
        return self._held[step]

    def _list(self, step: int) -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        for stored in self.models[step].stored():
            module = names.canonical(stored.name).removesuffix(".weight")
            if len(stored.shape) != 2 or 0 in stored.shape or stored.dtype not in _FLOATS:
                continue
            if module in found:
                raise DamagedError(f'{self.models[step].place} names the module "{module}" twice')
            found[module] = stored
        if not found:
            raise DamagedError(f"{self.models[step].place} holds no floating-point matrix")
        return found
