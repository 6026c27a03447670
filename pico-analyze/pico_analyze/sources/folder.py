"""One model directory in safetensors: its files, what they hold, and single tensors of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pico_contract.codec import TensorFile
from pico_contract.errors import DamagedError
from pico_contract.layout import MODEL_CONFIG, MODEL_WEIGHTS

from pico_analyze.sources import stamp

INDEX = f"{MODEL_WEIGHTS}.index.json"
_OPEN_FILES = 64


@dataclass(frozen=True)
class Stored:
    """A tensor of a model: the file that holds it, its name there, its shape and dtype as safetensors writes them."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: str


class OpenFiles:
    """The files that were read last, kept open. A copy in another process begins with none."""

    def __init__(self) -> None:
        self.get = lru_cache(_OPEN_FILES)(TensorFile)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()


class Folder:
    """A model directory on disk, of which single tensors are read."""

    def __init__(self, path: Path, files: OpenFiles) -> None:
        self.path = path
        self.place = str(path)
        self._open = files

    def config(self) -> Mapping[str, Any]:
        """config.json; DamagedError where it does not parse."""
        path = self.path / MODEL_CONFIG
        return read_object(path) if path.is_file() else {}

    def stored(self) -> list[Stored]:
        """Every tensor, from the headers of the model's files."""
        return [
            Stored(file, name, opened.shape(name), opened.dtype(name))
            for file in self._files()
            for opened in [self._open.get(self.path / file)]
            for name in opened.names
        ]

    def fingerprint(self) -> str:
        """Of the paths, sizes and times of its files, which are not read for it."""
        return stamp(self.path / file for file in self._files())

    def read(self, stored: Stored) -> torch.Tensor:
        """One tensor, from the one file that holds it."""
        return self._open.get(self.path / stored.file).get(stored.name)

    def _files(self) -> list[str]:
        """model.safetensors, or the shards of its index, or the one file in safetensors that there is."""
        if (self.path / MODEL_WEIGHTS).is_file():
            return [MODEL_WEIGHTS]
        index = self.path / INDEX
        if index.is_file():
            return shards(index)
        found = sorted(path.name for path in self.path.glob("*.safetensors"))
        if len(found) == 1:
            return found
        others = ", ".join(sorted(path.name for path in self.path.iterdir())[:8]) or "nothing"
        raise DamagedError(f"{self.path} has neither {MODEL_WEIGHTS} nor an index of shards; it has {others}")


def shards(index: Path) -> list[str]:
    """The files that an index of shards names; DamagedError where it does not parse or names files elsewhere."""
    named = read_object(index).get("weight_map")
    if not (isinstance(named, dict) and named and all(isinstance(file, str) for file in named.values())):
        raise DamagedError(f"{index} has no weight_map of tensors to files")
    files = sorted(set(named.values()))
    for file in files:
        if Path(file).name != file:
            raise DamagedError(f'{index} names "{file}", which is not a file beside it')
    return files


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; DamagedError where it holds none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(raw, dict):
        raise DamagedError(f"{path} should hold a JSON object")
    return raw
