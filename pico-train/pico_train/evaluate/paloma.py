"""Paloma (Magnusson et al. 2023, arXiv 2312.10523): perplexity on many whole sources of text."""

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
    """Perplexity on the sources of Paloma, measured as `text_perplexity` does."""

    path: str | None = None
    """"hub:allenai/paloma", or a directory of its files; null is off.
    The hub's is downloaded once, after you accepted its conditions there. A directory holds
    SOURCE/SPLIT/*.jsonl.gz, or SOURCE/*.jsonl."""
    split: str = "val"
    """Split of Paloma."""

    def reading(self) -> Sources:
        """Return the sources, ready to read.

        Raises:
            UserError: no path, no such directory or data set, or no source in it.
        """
        if self.path is None:
            raise UserError(
                "paloma has no text: set evaluate.paloma.path to a directory of it or hub:allenai/paloma"
            )
        if self.path.startswith(HUB):
            subsets = sorted(hub_subsets(self.path.removeprefix(HUB)))
            return {
                name: partial(hub_documents, self._subset(name), keep=True) for name in subsets
            }
        files_by_source = self._files(Path(self.path))
        return {name: partial(_documents, files) for name, files in files_by_source.items()}

    def _subset(self, name: str) -> SourceConfig:
        assert self.path is not None
        return SourceConfig(path=self.path, subset=name, split=self.split, field="text")

    def _files(self, folder: Path) -> dict[str, list[Path]]:
        """Return the files of each source below `folder`."""
        if not folder.is_dir():
            siblings = (
                [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
            )
            raise UserError(
                f"evaluate.paloma.path: there is no directory {folder}{did_you_mean(folder.name, siblings)}"
            )
        # Paloma's files lie in one directory a source, split below it.
        sources = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
        files_by_source = {
            name: _json_files(source / self.split) or _json_files(source)
            for name, source in sources.items()
        }
        for name, files in files_by_source.items():
            # A hidden directory, such as the .git of a clone, is not a source.
            if not files and not name.startswith("."):
                raise UserError(
                    f"evaluate.paloma.path: {folder / name} holds no .jsonl or .jsonl.gz file, nor does its directory"
                    f" {self.split}"
                )
        if not any(files_by_source.values()):
            raise UserError(f"evaluate.paloma.path: {folder} holds no directory of a source")
        return {name: files for name, files in files_by_source.items() if files}


def _json_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    visible = folder.glob("[!.]*")
    return sorted(path for path in visible if is_json_lines(path))


def _documents(files: list[Path]) -> Iterator[Document]:
    return itertools.chain.from_iterable(
        documents(SourceConfig(path=str(path), field="text")) for path in files
    )
