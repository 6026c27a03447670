"""Documents out of text files and files of JSON lines, and which files of a directory are read.

Every reader gives text alike: no byte order mark, lines that end in LF, and no document that is
blank.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pico_contract.errors import UserError

Record = tuple[str, dict[str, Any]]
"""(place, fields): the file and line of a record for messages, and its fields."""

JSON_LINES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
"""Endings (in lower case) of the names of files that are read as JSON lines."""
TEXT = (".txt", ".md")
"""Endings of the files that are read in a directory."""
_NO_TEXT = (
    *(
        ".csv",
        ".tsv",
        ".xml",
        ".html",
        ".htm",
        ".ipynb",
        ".pdf",
        ".doc",
        ".docx",
        ".odt",
        ".rtf",
        ".epub",
    ),
    *(
        ".xls",
        ".xlsx",
        ".ods",
        ".ppt",
        ".pptx",
        ".arrow",
        ".feather",
        ".avro",
        ".orc",
        ".db",
        ".sqlite",
        ".h5",
    ),
    *(
        ".gz",
        ".zst",
        ".xz",
        ".bz2",
        ".zip",
        ".tar",
        ".tgz",
        ".7z",
        ".rar",
        ".npy",
        ".npz",
        ".pt",
        ".pth",
        ".bin",
    ),
    *(
        ".pkl",
        ".pickle",
        ".safetensors",
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".mp3",
        ".mp4",
        ".wav",
        ".exe",
        ".so",
    ),
)
"""Endings of files whose bytes are not the text that a reader sees."""
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/")
_MARK = "\ufeff"
_BLOCK = 1 << 20
"""Bytes of a text file read at a time."""
_HEAD = 1 << 16
"""Characters of a text file in which signs of another kind of file are looked for."""


def normalised(text: str) -> str:
    """Remove a byte order mark before the text, and end its lines (CR LF, CR) in LF."""
    return text.removeprefix(_MARK).replace("\r\n", "\n").replace("\r", "\n")


def is_json_lines(path: Path) -> bool:
    """Tell by its name whether a file is read as JSON lines."""
    return path.name.lower().endswith(JSON_LINES)


def require_readable(path: Path) -> None:
    """Refuse what cannot be read as text or JSON lines, and read twice.

    Raises:
        UserError: a pipe or device, or a file whose name says that it is neither, with the remedy.
    """
    if not path.is_file() or str(path).startswith(_STREAMS):
        raise UserError(
            f"{path} is not a file: it would be read twice; write the text to a file, and name that"
        )
    ending = path.suffix.lower()
    if ending in _NO_TEXT and not is_json_lines(path):
        raise UserError(
            f"{path} is not read, since a {ending} file is more than plain text: write its text to a .txt file, or its"
            " documents to a .jsonl file, one object a line"
        )


def directory_files(folder: Path) -> list[Path]:
    """The .txt and .md files below `folder`, by name; hidden ones, and those in hidden directories,
    are left out."""
    return [path for path in _visible_files(folder) if path.suffix.lower() in TEXT]


def left_out(folder: Path) -> str | None:
    """One sentence that counts the other files below `folder` by kind; None where there are
    none."""
    others = (path for path in _visible_files(folder) if path.suffix.lower() not in TEXT)
    counts = Counter(path.suffix or "without ending" for path in others)
    if not counts:
        return None
    kinds = ", ".join(f"{count:,} {ending}" for ending, count in sorted(counts.items()))
    return (
        f"{folder}: {kinds} left out, since only {' and '.join(TEXT)} files of a directory are read"
    )


def _visible_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def text_documents(paths: Iterable[Path], separator: str | None) -> Iterator[str]:
    """The documents of text files, which part at `separator`; without one each file is a document.

    Of a file no more is held in memory than its longest document and a block.

    Raises:
        UserError: bytes that are not UTF-8, signs of another kind of file, or a separator that
            never occurs.
    """
    wanted, parted, read = normalised(separator or ""), False, ""
    for path in paths:
        read, rest = str(path), ""
        for block in _decoded_blocks(path):
            rest += block
            if wanted and wanted in rest:
                *whole, rest = rest.split(wanted)
                parted = True
                yield from (document for document in whole if document.strip())
        if rest.strip():
            yield rest
    if wanted and read and not parted:
        raise UserError(_no_separator(read, wanted))


def _no_separator(where: str, separator: str) -> str:
    shell = (
        " (in a shell, write 'source.separator=\"\\n\\n\"')"
        if set(separator) <= set("\\nrt")
        else ""
    )
    return (
        f"the separator {json.dumps(separator)} does not occur in {where}{shell}: correct it, or leave it out to read"
        " each file as one document"
    )


def _decoded_blocks(path: Path) -> Iterator[str]:
    require_readable(path)
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    is_first = True
    with path.open("rb") as handle:
        while True:
            start = handle.tell() - len(decoder.getstate()[0])
            raw = handle.read(_BLOCK)
            try:
                text = newlines.decode(cast(Any, decoder.decode(raw, final=not raw)), final=not raw)
            except UnicodeDecodeError as error:
                raise _not_utf8(str(path), start + error.start, error) from None
            if is_first:
                text, is_first = text.removeprefix(_MARK), False
                _require_plain_text(path, text)
            if "\0" in text:
                raise UserError(f"{path} holds a NUL byte: it is not a text file")
            yield text
            if not raw:
                return


def _require_plain_text(path: Path, text: str) -> None:
    """Refuse JSON lines under another name, whose braces would be read as text."""
    line = text[:_HEAD].lstrip().partition("\n")[0].strip()
    if path.suffix.lower() in TEXT or not line.startswith("{"):
        return
    try:
        is_object = isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return
    if is_object:
        raise UserError(
            f"{path} begins with a JSON object: name it .jsonl to read JSON lines, or .txt to read it as text"
        )


def decoded(raw: bytes, where: str) -> str:
    """UTF-8 bytes as text; UserError names `where` and the byte at fault."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error.start, error) from None


def _not_utf8(where: str, place: int, error: UnicodeDecodeError) -> UserError:
    wrong = error.object[error.start]
    wide = (
        "; it begins as UTF-16 does: convert it to UTF-8"
        if place == 0 and wrong in (0xFE, 0xFF)
        else ""
    )
    return UserError(f"{where} is not UTF-8: byte {place} is 0x{wrong:02x}{wide}")


def json_records(path: Path) -> Iterator[Record]:
    """The objects in a file of JSON lines, compressed where its name ends in .gz; empty lines left
    out.

    Raises:
        UserError: a line is not UTF-8, not JSON or not an object, by file and line; or the file is
            not a gzip file.
    """
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as handle:
        for number, raw in enumerate(_lines(cast(BinaryIO, handle), path), start=1):
            where = f"{path}, line {number}"
            line = decoded(raw, where)
            if number == 1:
                line = line.removeprefix(_MARK)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (
                ValueError,
                RecursionError,
            ) as error:  # also a number too long, and nesting too deep, to be read
                raise UserError(
                    f"{where} is not JSON ({getattr(error, 'msg', error)}){_whole_json(path)}"
                ) from None
            if not isinstance(record, dict):
                kind = type(record).__name__
                raise UserError(
                    f"{where} holds a {kind} where an object is expected{_whole_json(path)}"
                )
            yield where, record


def _whole_json(path: Path) -> str:
    """The remedy for a file that is one JSON value."""
    if not path.name.lower().endswith((".json", ".json.gz")):
        return ""
    return ": a .json file is read as JSON lines, one object a line; write its documents so"


def _lines(handle: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from handle
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole gzip file ({' '.join(str(error).split())})"
        ) from None
