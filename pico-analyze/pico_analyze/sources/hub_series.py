"""A series of steps on the Hugging Face hub, and the files of one of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
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
        """The address of the folder, for messages."""
        folder = f"/{self.folder}" if self.folder else ""
        return f"{PREFIX}{self.store.repo}@{self.revision}{folder}"

    def names(self) -> list[str]:
        """List the names of the files in the folder, without those in subfolders."""
        inside = [path for path in self._tree if path.startswith(self._prefix)]
        relative = [path.removeprefix(self._prefix) for path in inside]
        return [name for name in relative if "/" not in name]

    def read_json(self, name: str) -> dict[str, Any]:
        """Read the JSON object in a small file, which is downloaded and never deleted."""
        return read_object(self.store.small_file(self.commit, self._prefix + name))

    def header(self, name: str) -> list[TensorInfo]:
        """List the tensors of a file, which is not downloaded for it."""
        stored = self.store.header(self.commit, self._prefix + name)
        return [replace(tensor, file=name) for tensor in stored]

    def read(self, stored: TensorInfo) -> torch.Tensor:
        """Read one tensor, after downloading its file unless that is on disk."""
        get = partial(_tensor, name=stored.name)
        return self.store.read(self.commit, self._prefix + stored.file, get)

    def content_id(self, names: Sequence[str]) -> str:
        """Identify the bytes of files by the hashes that the hub lists; nothing is downloaded."""
        return digest([name, self._tree[self._prefix + name].identity] for name in names)

    def size(self, names: Sequence[str]) -> int:
        """Return the bytes of these files, as the hub lists them."""
        return sum(self._tree[self._prefix + name].size for name in names)

    @property
    def _tree(self) -> Mapping[str, Entry]:
        return self.store.tree(self.commit)


def _tensor(path: Path, name: str) -> torch.Tensor:
    return TensorFile(path).get(name)


class HubSeries(Series):
    """A series of steps on the hub."""

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
        """The number of steps whose files fit into the budget, beside those of a reference step."""
        largest = max(self.size(step) for step in self.steps)
        return max(1, self.store.fitting(largest) - 1)

    def size(self, step: int) -> int:
        """Return the bytes of the files of a step, as the hub lists them."""
        return self.models[step].size()

    def check_listing(self) -> None:
        """Leave out steps in an unsupported format, by the hub's listing, and note equal steps.

        Raises:
            UserError: no step can be read.
        """
        steps_of: dict[str, list[int]] = {}  # identity of the weights -> steps
        # A copy, since steps are removed in the loop
        for step in list(self.models):
            try:
                steps_of.setdefault(self.content_id(step), []).append(step)
            except UnsupportedError as error:
                self._leave_out(step, str(error))
            except DamagedError as error:
                self.damaged[step] = [str(error)]
        if not self.steps:
            reasons = [*chain.from_iterable(self.damaged.values()), *self.notes]
            raise UserError(f"no step of {self.name} can be read: {reasons[0]}")
        for steps in steps_of.values():
            if len(steps) > 1:
                self.notes.append(f"steps {', '.join(map(str, steps))} hold the same files")

    def _leave_out(self, step: int, sentence: str) -> None:
        del self.models[step]
        self.notes.append(f"left out: {sentence}")
