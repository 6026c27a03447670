"""A data directory whose training rows stay where they are: on the hub, or in a directory of the
same layout."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pico_contract import codec
from pico_contract.data_directory import data_fingerprint
from pico_contract.errors import UserError, did_you_mean
from pico_contract.layout import DataLayout
from pico_contract.schema import DataManifest, SplitInfo
from pydantic import Field

from pico_train.config import Section
from pico_train.data.hub_files import HubRepo
from pico_train.data.packed import PackedWriter, smallest_dtype
from pico_train.data.publish import is_made, publish_data
from pico_train.data.shards import Listing, Shard
from pico_train.data.sources import HUB, SourceConfig, documents
from pico_train.data.tokenizer import load_tokenizer, special_tokens

_REQUESTS = 16
"""Footers that are asked for at a time."""
_TOLD = 1000
"""Files after which progress is told."""


class FetchConfig(Section):
    """How a data directory is made of rows that were tokenised and cut by others, and are not
    copied."""

    source: str
    """A data set of the hub (`owner/name`), or a local directory of its files."""
    out: Path
    """The data directory to make."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set, of which the commit is kept; null is the default
    branch."""
    files: str = "*train*.parquet"
    """Glob over the paths of the shards, which are read in the order of their names."""
    column: str = "input_ids"
    """Column with the token ids of a row, as many in each."""
    vocab_size: int = Field(50_304, ge=1)
    """Vocabulary of the models that will read the data."""
    tokenizer: Path | None = None
    """tokenizer.json, or a directory that holds one, with which the rows were made; null leaves
    rows without text."""
    validation: SourceConfig | None = None
    """Tokenised documents whose rows are packed here, for the probe and for perplexity; null leaves
    them out."""
    validation_rows: int = Field(1024, ge=1)
    """How many of them at most."""
    licence: str = "unknown"
    """Licence of the source, recorded with the data."""


def fetch(config: FetchConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Make the data directory `config.out`, whole or not at all, from the shards' footers; no shard
    is downloaded.

    Raises:
        UserError: another data directory lies there, no access, no such file, rows of several
            lengths, validation documents that are text.
        ConnectionError: the hub does not answer.
    """
    layout, settings = DataLayout(config.out), config.model_dump(mode="json", exclude={"out"})
    if is_made(config.out, settings, ()) is not None:
        say(f"{config.out} is fetched already; delete it to fetch it again")
        return config.out
    listing = _listing(config, say)
    with publish_data(config.out, say) as draft:
        manifest = _write(config, listing, DataLayout(draft))
        manifest.settings, manifest.source_files = settings, []
        codec.seal(draft, manifest, layout.manifest.name)
    for split, info in manifest.splits.items():
        say(f"{split}: {info.rows:,} rows of {listing.row_length}, {info.tokens:,} tokens")
    return config.out


def _listing(config: FetchConfig, say: Callable[[str], None]) -> Listing:
    path = Path(config.source)
    if path.is_dir():
        return _of_directory(config, path.resolve(), say)
    if config.source.startswith((".", "/", "~")):
        raise UserError(
            f"there is no directory {config.source}{did_you_mean(path.name, _siblings(path))}"
        )
    repo = HubRepo(config.source.removeprefix(HUB), config.revision)
    files = repo.shards(config.files)

    def measured(entry: tuple[str, int, str]) -> tuple[Shard, int]:
        file, size, sha256 = entry
        rows, length = _shape(repo.footer(file, size), config.column, file)
        return Shard(file, size, sha256, rows), length

    with ThreadPoolExecutor(_REQUESTS) as pool:
        shards, length = _alike(pool.map(measured, files), len(files), say)
    return Listing(repo.repo, repo.commit, None, config.column, length, shards)


def _siblings(path: Path) -> list[str]:
    return [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []


def _of_directory(config: FetchConfig, root: Path, say: Callable[[str], None]) -> Listing:
    import pyarrow as pa
    import pyarrow.parquet as pq

    present = sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()
    )
    files = fnmatch.filter(present, config.files)
    if not files:
        raise UserError(f'{root} has no file "{config.files}"{did_you_mean(config.files, present)}')

    def measured(file: str) -> tuple[Shard, int]:
        path = root / file
        try:
            rows, length = _shape(pq.read_metadata(path), config.column, str(path))
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} is not a Parquet file ({' '.join(str(error).split())})"
            ) from None
        return Shard(file, path.stat().st_size, codec.sha256_file(path), rows), length

    shards, length = _alike(map(measured, files), len(files), say)
    return Listing(None, None, str(root), config.column, length, shards)


def _shape(metadata: Any, column: str, where: str) -> tuple[int, int]:
    """(rows, ids a row) of a file, by its footer."""
    names = [metadata.schema.column(i).path.split(".")[0] for i in range(metadata.num_columns)]
    if column not in names:
        raise UserError(f'{where} has no column "{column}"{did_you_mean(column, names)}')
    index, rows = names.index(column), metadata.num_rows
    values = sum(
        metadata.row_group(i).column(index).num_values for i in range(metadata.num_row_groups)
    )
    if rows == 0 or values % rows or values < 2 * rows:
        raise UserError(
            f"{where} has {values:,} ids in {rows:,} rows, which are not rows of one length: cut them anew with"
            " `pico-train data prepare`"
        )
    return rows, values // rows


def _alike(
    measured: Iterable[tuple[Shard, int]], total: int, say: Callable[[str], None]
) -> tuple[tuple[Shard, ...], int]:
    """The shards, and the one length that their rows have."""
    shards: list[Shard] = []
    length = 0
    for shard, found in measured:
        length = length or found
        if found != length:
            raise UserError(
                f"rows of {shard.file} have {found} ids, those of {shards[0].file} {length}"
            )
        shards.append(shard)
        if len(shards) % _TOLD == 0:
            say(f"{len(shards):,} of {total:,} files")
    return tuple(shards), length


def _write(config: FetchConfig, listing: Listing, layout: DataLayout) -> DataManifest:
    codec.write_text(layout.shards("train"), listing.to_json())
    tokens = listing.rows * listing.row_length
    splits = {
        "train": SplitInfo(
            rows=listing.rows, tokens=tokens, documents=listing.rows, dropped_tokens=0
        )
    }
    digests = {"train": listing.digest}
    if config.validation is not None:
        splits["validation"], digests["validation"] = _write_validation(
            config, config.validation, listing.row_length, layout
        )
    special: dict[str, int] = {}
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer)
        codec.write_text(layout.tokenizer, tokenizer.to_str(pretty=True))
        special = special_tokens(tokenizer, config.vocab_size)
    return DataManifest(
        fingerprint=data_fingerprint(listing.row_length - 1, digests),
        source=f"{HUB}{listing.repo}@{listing.revision}"
        if listing.repo
        else str(listing.directory),
        licence=config.licence,
        seq_len=listing.row_length - 1,
        vocab_size=config.vocab_size,
        dtype=smallest_dtype(config.vocab_size),
        special_tokens=special,
        splits=splits,
    )


def _write_validation(
    config: FetchConfig, source: SourceConfig, row_length: int, layout: DataLayout
) -> tuple[SplitInfo, str]:
    """The first rows of the validation documents, packed as `prepare` packs them."""
    with PackedWriter(
        layout, "validation", row_length - 1, smallest_dtype(config.vocab_size)
    ) as writer:
        for document in documents(source):
            if isinstance(document, str):
                raise UserError(
                    f'validation: "{source.path}" holds text, where tokenised documents are expected'
                )
            if outside := [i for i in document.tolist() if not 0 <= i < config.vocab_size]:
                raise UserError(
                    f'"{source.path}" holds the id {outside[0]}, outside a vocabulary of {config.vocab_size}'
                )
            room = config.validation_rows * row_length - writer.tokens
            writer.add(document[:room])
            if len(document) >= room:
                break
        info, digest = writer.close()
    if info.rows == 0:
        raise UserError(
            f'validation: "{source.path}" has {info.tokens} tokens, less than one row of {row_length}'
        )
    return info, digest
