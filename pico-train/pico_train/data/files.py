"""Documents from text files and JSON lines, and the choice of files in a directory.

Every reader normalises texts alike: no byte order mark, lines that end in LF, no blank documents.
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
"""(place, fields): file and line of a record for messages, and its fields."""

JSON_LINES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
"""Endings (in lower case) of files that are read as JSON lines."""
TEXT = (".txt", ".md")
"""Endings of files that are read in a directory."""
_NO_TEXT = (
    ".csv .tsv .xml .html .htm .ipynb .pdf .doc .docx .odt .rtf .epub"
    " .xls .xlsx .ods .ppt .pptx .arrow .feather .avro .orc .db .sqlite .h5"
    " .gz .zst .xz .bz2 .zip .tar .tgz .7z .rar .npy .npz .pt .pth .bin"
    " .pkl .pickle .safetensors .png .jpg .jpeg .gif .mp3 .mp4 .wav .exe .so"
)
"""Endings of files whose bytes are not the text that a reader sees, separated by spaces."""
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/")
"""Beginnings of paths that can be read only once."""
_MARK = "\ufeff"
"""The byte order mark."""
_BLOCK = 1 << 20
"""Bytes of a text file read at a time."""
_HEAD = 1 << 16
"""Characters at the beginning of a text file that are searched for JSON."""


def normalised(text: str) -> str:
    """Remove a byte order mark before the text, and end its lines (CR LF, CR) in LF."""
    return text.removeprefix(_MARK).replace("\r\n", "\n").replace("\r", "\n")


def is_json_lines(path: Path) -> bool:
    """Return whether a file is read as JSON lines, by its name."""
    return path.name.lower().endswith(JSON_LINES)


def require_readable(path: Path) -> None:
    """Refuse a file that is not text or JSON lines, or that cannot be read twice.

    Raises:
        UserError: a pipe or device, or a file whose name says that it is neither, with the remedy.
    """
    if not path.is_file() or str(path).startswith(_STREAMS):
        raise UserError(
            f"{path} is not a file: it would be read twice; write the text to a file, and name that"
        )
    # By name, since the bytes of a CSV or HTML file are valid text too.
    ending = path.suffix.lower()
    if ending in _NO_TEXT.split() and not is_json_lines(path):
        raise UserError(
            f"{path} is not read, since a {ending} file is more than plain text: write its text to a .txt file, or its"
            " documents to a .jsonl file, one object a line"
        )


def directory_files(folder: Path) -> list[Path]:
    """Return the .txt and .md files below `folder`, sorted by path.

    Hidden files and files in hidden directories are left out.
    """
    return [path for path in _visible_files(folder) if path.suffix.lower() in TEXT]


def left_out(folder: Path) -> str | None:
    """Count the other files below `folder` by ending, in one sentence; None if there are none."""
    others = [path for path in _visible_files(folder) if path.suffix.lower() not in TEXT]
    if not others:
        return None
    counts = Counter(path.suffix or "without ending" for path in others)
    listed = ", ".join(f"{count:,} {ending}" for ending, count in sorted(counts.items()))
    return f"{folder}: {listed} left out, since only {' and '.join(TEXT)} files of a directory are read"


def _visible_files(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in files if not _is_hidden(path.relative_to(folder)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def text_documents(paths: Iterable[Path], separator: str | None) -> Iterator[str]:
    """Yield the documents of text files, split at `separator`.

    Without a separator each file is one document. Memory holds no more of a file than its longest
    document and a block.

    Raises:
        UserError: bytes that are not UTF-8, signs of another kind of file, or a separator that
            never occurs.
    """
    separator = normalised(separator or "")
    is_split, last_path = False, ""
    for path in paths:
        last_path, rest = str(path), ""
        for block in _decoded_blocks(path):
            # The separator may cross the border between two blocks.
            rest += block
            if separator and separator in rest:
                *whole, rest = rest.split(separator)
                # The last part may go on in the next block.
                is_split = True
                yield from (document for document in whole if document.strip())
        if rest.strip():
            yield rest
    if separator and last_path and not is_split:
        raise UserError(_no_separator(last_path, separator))


def _no_separator(where: str, separator: str) -> str:
    # A shell passes \n as two characters, the commonest cause.
    is_escape = set(separator) <= set("\\nrt")
    shell = " (in a shell, write 'source.separator=\"\\n\\n\"')" if is_escape else ""
    return (
        f"the separator {json.dumps(separator)} does not occur in {where}{shell}: correct it, or leave it out to read"
        " each file as one document"
    )


def _decoded_blocks(path: Path) -> Iterator[str]:
    """Yield the text of a file in blocks, its line ends as LF."""
    require_readable(path)
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    is_first = True
    with path.open("rb") as handle:
        while True:
            # The decoder keeps the bytes of a character that the last block cut.
            start = handle.tell() - len(decoder.getstate()[0])
            raw = handle.read(_BLOCK)
            is_last = not raw
            try:
                decoded_block = decoder.decode(raw, final=is_last)
            except UnicodeDecodeError as error:
                raise _not_utf8(str(path), start + error.start, error) from None
            text = newlines.decode(cast(Any, decoded_block), final=is_last)
            if is_first:
                text, is_first = text.removeprefix(_MARK), False
                _require_plain_text(path, text)
            if "\0" in text:
                raise UserError(f"{path} holds a NUL byte: it is not a text file")
            yield text
            if is_last:
                return


def _require_plain_text(path: Path, text: str) -> None:
    """Refuse JSON lines under another name, because their braces would be read as text."""
    # JSON lines would be read as one text with braces.
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
    """Decode UTF-8 bytes; `where` names them in errors.

    Raises:
        UserError: bytes that are not UTF-8, with the place of the first.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error.start, error) from None


def _not_utf8(where: str, place: int, error: UnicodeDecodeError) -> UserError:
    wrong = error.object[error.start]
    is_utf16 = place == 0 and wrong in (0xFE, 0xFF)
    remedy = "; it begins as UTF-16 does: convert it to UTF-8" if is_utf16 else ""
    return UserError(f"{where} is not UTF-8: byte {place} is 0x{wrong:02x}{remedy}")


def json_records(path: Path) -> Iterator[Record]:
    """Yield the objects in a file of JSON lines without its empty lines; .gz is decompressed.

    Raises:
        UserError: a line is not UTF-8, not JSON or not an object, by file and line; or the file is
            not a gzip file.
    """
    is_compressed = path.suffix.lower() == ".gz"
    with gzip.open(path) if is_compressed else path.open("rb") as handle:
        lines = _lines(cast(BinaryIO, handle), path)
        for number, raw in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            line = decoded(raw, where)
            if number == 1:
                line = line.removeprefix(_MARK)
            if line.strip():
                yield where, _json_object(line, where, path)


def _json_object(line: str, where: str, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    # ValueError covers numbers too long to convert, RecursionError nesting too deep.
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise UserError(f"{where} is not JSON ({reason}){_whole_json(path)}") from None
    if not isinstance(record, dict):
        raise UserError(
            f"{where} holds a {type(record).__name__} where an object is expected{_whole_json(path)}"
        )
    return record


def _whole_json(path: Path) -> str:
    """Return the remedy for a file that is one JSON value, by its name."""
    if not path.name.lower().endswith((".json", ".json.gz")):
        return ""
    return ": a .json file is read as JSON lines, one object a line; write its documents so"


def _lines(handle: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        # A damaged gzip file fails only when its lines are read.
        yield from handle
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole gzip file ({' '.join(str(error).split())})"
        ) from None
