"""Fetching data: a data directory whose training rows stay on the hub or in another directory."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from pico_train.data.sources import HUB, Document, SourceConfig, documents
from pico_train.data.tokenizer import load_tokenizer, special_tokens

_REQUESTS = 16
"""Footers that are requested at a time."""
_REPORT_EVERY = 1000
"""Files between two reports of progress."""


class FetchConfig(Section):
    """Options of a data directory of rows that others tokenised and cut, without a copy of them."""

    source: str
    """A data set of the hub (`owner/name`), or a local directory of its files."""
    out: Path
    """The data directory to make."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; null is the default branch.
    The data directory stores the commit."""
    files: str = "*train*.parquet"
    """Glob over the paths of the shards, which are read in the order of their names."""
    column: str = "input_ids"
    """Column with the token ids of a row; every row has equally many."""
    vocab_size: int = Field(50_304, ge=1)
    """Vocabulary of the models that will read the data."""
    tokenizer: Path | None = None
    """tokenizer.json that made the rows, or its directory; null leaves rows without text."""
    validation: SourceConfig | None = None
    """Tokenised documents to pack as validation rows; null is none.
    The probe and the perplexity task read them."""
    validation_rows: int = Field(1024, ge=1)
    """Upper bound of the validation rows."""
    licence: str = "unknown"
    """Licence of the source, recorded with the data."""


def fetch(config: FetchConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Make the data directory `config.out`, whole or not at all.

    Only the footers of the shards are read; no shard is downloaded.

    Raises:
        UserError: another data directory lies there, no access, no such file, rows of several
            lengths, validation documents that are text.
        ConnectionError: the hub does not answer.
    """
    out = config.out
    settings = config.model_dump(mode="json", exclude={"out"})
    # No local file is a source: shards are checked by the hashes of the listing.
    if is_made(out, settings, ()) is not None:
        say(f"{out} is fetched already; delete it to fetch it again")
        return out
    listing = _listing(config, say)
    with publish_data(out, say) as draft:
        manifest = _write(config, listing, DataLayout(draft))
        manifest.settings = settings
        manifest.source_files = []
        codec.seal(draft, manifest, DataLayout(out).manifest.name)
    for split, info in manifest.splits.items():
        size = f"{info.rows:,} rows of {listing.row_length}"
        say(f"{split}: {size}, {info.tokens:,} tokens")
    return out


def _listing(config: FetchConfig, say: Callable[[str], None]) -> Listing:
    """List the shards of the source."""
    path = Path(config.source)
    if path.is_dir():
        return _list_directory(config, path.resolve(), say)
    if config.source.startswith((".", "/", "~")):  # a hub name never begins so
        near = did_you_mean(path.name, _siblings(path))
        raise UserError(f"there is no directory {config.source}{near}")
    return _list_repository(config, say)


def _list_repository(config: FetchConfig, say: Callable[[str], None]) -> Listing:
    repo = HubRepo(config.source.removeprefix(HUB), config.revision)
    files = repo.shards(config.files)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        measured = pool.map(partial(_measure_remote, repo, config.column), files)
        shards, length = _require_one_length(measured, len(files), say)
    return Listing(repo.repo, repo.commit, None, config.column, length, shards)


def _measure_remote(
    repo: HubRepo, column: str, entry: tuple[str, int, str]
) -> tuple[Shard, int]:
    """Return the shard of a file on the hub and the length of its rows, from its footer."""
    file, size, sha256 = entry
    rows, length = _shape(repo.footer(file, size), column, file)
    return Shard(file, size, sha256, rows), length


def _siblings(path: Path) -> list[str]:
    # The parent itself may be missing.
    return [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []


def _list_directory(config: FetchConfig, root: Path, say: Callable[[str], None]) -> Listing:
    pattern, column = config.files, config.column
    present = _files_below(root)
    files = fnmatch.filter(present, pattern)
    if not files:
        near = did_you_mean(pattern, present)
        raise UserError(f'{root} has no file "{pattern}"{near}')
    measure = partial(_measure_local, root, column)
    measured = map(measure, files)
    shards, length = _require_one_length(measured, len(files), say)
    return Listing(None, None, str(root), column, length, shards)


def _files_below(root: Path) -> list[str]:
    paths = [path for path in root.rglob("*") if path.is_file()]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def _measure_local(root: Path, column: str, file: str) -> tuple[Shard, int]:
    """Return the shard in a local file and the length of its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / file
    try:
        rows, length = _shape(pq.read_metadata(path), column, str(path))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is not a Parquet file ({' '.join(str(error).split())})"
        ) from None
    return Shard(file, path.stat().st_size, codec.sha256_file(path), rows), length


def _shape(metadata: Any, column: str, where: str) -> tuple[int, int]:
    """Return (rows, ids a row) of a file, by its footer."""
    columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    # The path of a column of lists is NAME.list.element.
    names = [entry.path.split(".")[0] for entry in columns]
    if column not in names:
        raise UserError(f'{where} has no column "{column}"{did_you_mean(column, names)}')
    index = names.index(column)
    n_rows = metadata.num_rows
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    n_ids = sum(group.column(index).num_values for group in groups)
    # A footer has totals only; reading a shard checks every row.
    is_divisible = n_rows > 0 and n_ids % n_rows == 0
    if not is_divisible or n_ids < 2 * n_rows:
        raise UserError(
            f"{where} has {n_ids:,} ids in {n_rows:,} rows, which are not rows of one length: cut them anew with"
            " `pico-train data prepare`"
        )
    return n_rows, n_ids // n_rows


def _require_one_length(
    measured: Iterable[tuple[Shard, int]], total: int, say: Callable[[str], None]
) -> tuple[tuple[Shard, ...], int]:
    """Return the shards and the one length that their rows share."""
    shards: list[Shard] = []
    first_length = 0
    for shard, length in measured:
        first_length = first_length or length
        if length != first_length:
            raise UserError(
                f"rows of {shard.file} have {length} ids, those of {shards[0].file} {first_length}"
            )
        shards.append(shard)
        if len(shards) % _REPORT_EVERY == 0:
            say(f"{len(shards):,} of {total:,} files")
    return tuple(shards), first_length


def _write(config: FetchConfig, listing: Listing, layout: DataLayout) -> DataManifest:
    """Write listing, validation rows and tokenizer, and return the manifest of the directory."""
    codec.write_text(layout.shards("train"), listing.to_json())
    n_rows, row_length = listing.rows, listing.row_length
    tokens = n_rows * row_length
    splits = {
        "train": SplitInfo(rows=n_rows, tokens=tokens, documents=n_rows, dropped_tokens=0)
    }
    # Rows are not read here, so the listing's digest stands for their content.
    digests = {"train": listing.digest}
    if config.validation is not None:
        info, digest = _write_validation(config, config.validation, row_length, layout)
        splits["validation"], digests["validation"] = info, digest
    special = _write_tokenizer(config, layout)
    # The commit in it makes the source reproducible.
    on_hub = f"{HUB}{listing.repo}@{listing.revision}"
    return DataManifest(
        fingerprint=data_fingerprint(row_length - 1, digests),
        source=on_hub if listing.repo else str(listing.directory),
        licence=config.licence,
        seq_len=row_length - 1,
        vocab_size=config.vocab_size,
        dtype=smallest_dtype(config.vocab_size),
        special_tokens=special,
        splits=splits,
    )


def _write_tokenizer(config: FetchConfig, layout: DataLayout) -> dict[str, int]:
    """Copy the tokenizer, if any, and return the ids of its special tokens."""
    if config.tokenizer is None:
        return {}
    tokenizer = load_tokenizer(config.tokenizer)
    codec.write_text(layout.tokenizer, tokenizer.to_str(pretty=True))
    return special_tokens(tokenizer, config.vocab_size)


def _write_validation(
    config: FetchConfig, source: SourceConfig, row_length: int, layout: DataLayout
) -> tuple[SplitInfo, str]:
    """Pack the first rows of the validation documents as `prepare` packs them."""
    dtype = smallest_dtype(config.vocab_size)
    with PackedWriter(layout, "validation", row_length - 1, dtype) as writer:
        for document in documents(source):
            ids = _require_ids(document, config.vocab_size, source.path)
            n_missing = config.validation_rows * row_length - writer.tokens
            # The last document is cut, so that the rows are exactly as many as wanted.
            writer.add(ids[:n_missing])
            if len(ids) >= n_missing:
                break
        info, digest = writer.close()
    if info.rows == 0:
        raise UserError(
            f'validation: "{source.path}" has {info.tokens} tokens, less than one row of {row_length}'
        )
    return info, digest


def _require_ids(document: Document, vocab_size: int, path: str) -> np.ndarray:
    """Return a document of ids; refuse text and ids outside the vocabulary."""
    if isinstance(document, str):
        raise UserError(
            f'validation: "{path}" holds text, where tokenised documents are expected'
        )
    outside = document[(document < 0) | (document >= vocab_size)]
    if outside.size:
        raise UserError(
            f'"{path}" holds the id {outside[0]}, outside a vocabulary of {vocab_size}'
        )
    return document
