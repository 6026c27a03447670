"""Paloma (Magnusson et al. 2023, arXiv 2312.10523): perplexity on many sources of text, each read
as a whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pico_contract.errors import UserError, did_you_mean

from pico_train.data.files import is_json_lines
from pico_train.data.sources import (
    HUB,
    Document,
    SourceConfig,
    documents,
    hub_documents,
    hub_subsets,
)
from pico_train.evaluate.text_perplexity import Sources, TextsConfig


class PalomaConfig(TextsConfig):
    """Perplexity on the sources of Paloma, as `text_perplexity` measures it."""

    path: str | None = None
    """"hub:allenai/paloma", which is downloaded once (after its conditions were accepted there), or
    a directory of its files: SOURCE/SPLIT/*.jsonl.gz, or SOURCE/*.jsonl; null is off."""
    split: str = "val"
    """Its split."""

    def reading(self) -> Sources:
        """The documents of each source.

        Raises:
            UserError: no path, no such directory or data set, or no source in it.
        """
        if self.path is None:
            raise UserError(
                "paloma has no text: set evaluate.paloma.path to a directory of it or hub:allenai/paloma"
            )
        if self.path.startswith(HUB):
            subsets = sorted(hub_subsets(self.path.removeprefix(HUB)))
            return {name: partial(hub_documents, self._subset(name), keep=True) for name in subsets}
        return {
            name: partial(_documents, files) for name, files in self._files(Path(self.path)).items()
        }

    def _subset(self, name: str) -> SourceConfig:
        assert self.path is not None
        return SourceConfig(path=self.path, subset=name, split=self.split, field="text")

    def _files(self, folder: Path) -> dict[str, list[Path]]:
        if not folder.is_dir():
            siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
            raise UserError(
                f"evaluate.paloma.path: there is no directory {folder}{did_you_mean(folder.name, siblings)}"
            )
        inner = {source.name: source for source in sorted(folder.iterdir()) if source.is_dir()}
        found = {
            name: _json_files(source / self.split) or _json_files(source)
            for name, source in inner.items()
        }
        if empty := [
            name for name, files in found.items() if not files and not name.startswith(".")
        ]:
            raise UserError(
                f"evaluate.paloma.path: {folder / empty[0]} holds no .jsonl or .jsonl.gz file, nor does its directory"
                f" {self.split}"
            )
        if not any(found.values()):
            raise UserError(f"evaluate.paloma.path: {folder} holds no directory of a source")
        return {name: files for name, files in found.items() if files}


def _json_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[!.]*") if is_json_lines(p)) if folder.is_dir() else []


def _documents(files: list[Path]) -> Iterator[Document]:
    return itertools.chain.from_iterable(
        documents(SourceConfig(path=str(path), field="text")) for path in files
    )
