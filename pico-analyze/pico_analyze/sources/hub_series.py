"""A series of steps on the Hugging Face hub, and the files of one of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pico_contract.codec import TensorFile
from pico_contract.errors import DamagedError, UserError

from pico_analyze.sources.files import TensorInfo, digest, read_object
from pico_analyze.sources.formats import UnsupportedError
from pico_analyze.sources.hub_store import PREFIX, Entry, Store
from pico_analyze.sources.model import Model
from pico_analyze.sources.model_series import Series


@dataclass(frozen=True)
class HubFiles:
    """The files of one folder at one commit; see `pico_analyze.sources.files.Files`."""

    store: Store
    commit: str
    revision: str
    folder: str = ""

    @property
    def _prefix(self) -> str:
        return f"{self.folder}/" if self.folder else ""

    @property
    def place(self) -> str:
        """Where they lie, for messages."""
        return f"{PREFIX}{self.store.repo}@{self.revision}" + (
            f"/{self.folder}" if self.folder else ""
        )

    def names(self) -> list[str]:
        """Of the files in the folder."""
        inside = (
            path.removeprefix(self._prefix) for path in self._tree if path.startswith(self._prefix)
        )
        return [name for name in inside if "/" not in name]

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in a small file, which is downloaded and kept."""
        return read_object(self.store.small_file(self.commit, self._prefix + name))

    def header(self, name: str) -> list[TensorInfo]:
        """Each tensor of a file, which is not downloaded for it."""
        stored = self.store.header(self.commit, self._prefix + name)
        return [TensorInfo(name, one.name, one.shape, one.dtype) for one in stored]

    def read(self, stored: TensorInfo) -> torch.Tensor:
        """One tensor, after downloading the file that holds it if it is not there."""
        get = partial(_tensor, name=stored.name)
        return self.store.read(self.commit, self._prefix + stored.file, get)

    def content_id(self, names: Sequence[str]) -> str:
        """From the hashes that the hub lists; nothing is downloaded."""
        return digest([name, self._tree[self._prefix + name].identity] for name in names)

    def size(self, names: Sequence[str]) -> int:
        """Bytes of these files, as the hub lists them."""
        return sum(self._tree[self._prefix + name].size for name in names)

    @property
    def _tree(self) -> Mapping[str, Entry]:
        return self.store.tree(self.commit)


def _tensor(path: Path, name: str) -> torch.Tensor:
    return TensorFile(path).get(name)


class HubSeries(Series):
    """Steps on the hub; files of `at_once` of them fit into the budget, beside those of a
    reference."""

    def __init__(
        self,
        name: str,
        store: Store,
        models: Mapping[int, Model],
        tokens: Mapping[int, int | None],
        origin: str,
    ) -> None:
        super().__init__(name, models, tokens, origin)
        self.store = store

    @property
    def at_once(self) -> int:
        """By the largest step."""
        return max(1, min(self.store.fitting(self.size(step)) for step in self.steps) - 1)

    def size(self, step: int) -> int:
        """Bytes of the files of a step, as the hub lists them."""
        return self.models[step].size()

    def check_listing(self) -> None:
        """Leave out steps whose weights the listing shows to be in another format, and note steps
        that are equal."""
        equal: dict[str, list[int]] = {}
        for step in list(self.models):
            try:
                equal.setdefault(self.content_id(step), []).append(step)
            except UnsupportedError as error:
                self._leave_out(step, str(error))
            except DamagedError as error:
                self.damaged[step] = [str(error)]
        if not self.steps:
            why = [sentence for found in self.damaged.values() for sentence in found] or self.notes
            raise UserError(f"no step of {self.name} can be read: {why[0]}")
        repeated = [", ".join(map(str, steps)) for steps in equal.values() if len(steps) > 1]
        self.notes += [f"steps {steps} hold the same files" for steps in repeated]

    def _leave_out(self, step: int, sentence: str) -> None:
        del self.models[step]
        self.notes.append(f"left out: {sentence}")
