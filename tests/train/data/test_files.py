"""One text, whatever file it comes in; and files of other kinds, which are refused or counted."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pico_contract.errors import UserError
from pico_train.data.sources import SourceConfig, documents, source_remarks

from .conftest import Make

ODD = ["\ufeffThe king\r\nspeaks.", "", " \r\n ", "A\rqueen\r\n\r\nweeps."]
PLAIN = ["The king\nspeaks.", "A\nqueen\n\nweeps."]


def read(path: Path | str, **changes: Any) -> list[Any]:
    found = documents(SourceConfig(path=str(path), **changes))
    return [d if isinstance(d, str) else d.tolist() for d in found]


def mistake(path: Path | str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines(texts: list[str]) -> bytes:
    return "\n".join(json.dumps({"text": text}) for text in texts).encode()


def as_text(folder: Path) -> SourceConfig:
    (folder / "a.txt").write_bytes("%%".join(ODD).encode())
    return SourceConfig(path=str(folder / "a.txt"), separator="%%")


def as_directory(folder: Path) -> SourceConfig:
    (folder / "texts").mkdir()
    for number, text in enumerate(ODD):
        (folder / "texts" / f"{number}.TXT").write_bytes(text.encode())
    return SourceConfig(path=str(folder / "texts"))


def as_json_lines(folder: Path) -> SourceConfig:
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(ODD).replace(b"\n", b"\r\n"))
    return SourceConfig(path=str(folder / "a.jsonl"))


def as_parquet(folder: Path) -> SourceConfig:
    pq.write_table(pa.table({"text": ODD}), folder / "a.PARQUET")
    return SourceConfig(path=str(folder / "a.PARQUET"))


def as_hub(folder: Path) -> SourceConfig:
    (folder / "set").mkdir()
    pq.write_table(pa.table({"text": ODD}), folder / "set" / "train-00000.parquet")
    return SourceConfig(path=f"hub:{folder / 'set'}")


@pytest.mark.parametrize("write", [as_text, as_directory, as_json_lines, as_parquet, as_hub])
def test_every_reader_gives_the_same_documents(tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte order mark, lines that end in LF, no blank document."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert list(documents(write(tmp_path))) == PLAIN


@pytest.mark.parametrize("ending", ["\r\n", "\r"])
@pytest.mark.parametrize("shift", range(4))
def test_line_ends_may_lie_across_blocks(tmp_path: Path, ending: str, shift: int) -> None:
    text = "x" * ((1 << 20) - 2 + shift)
    (tmp_path / "a.txt").write_bytes(f"{text}{ending}y{ending * 2}z".encode())
    assert read(tmp_path / "a.txt", separator="\n\n") == [f"{text}\ny", "z"]
    assert read(tmp_path / "a.txt", separator="\r\n\r\n") == [f"{text}\ny", "z"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL", "a.NdJson", "a.json", "a.jsonl.gz", "a.JSON.GZ"])
def test_json_lines_are_known_by_their_names(tmp_path: Path, name: str) -> None:
    content = lines(PLAIN)
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.lower().endswith("gz") else content)
    assert read(tmp_path / name) == PLAIN


ARRAY = b'[{"text": "a"}, {"text": "b"}]'
PRETTY = b'{\n  "text": "a"\n}'


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", ARRAY, "line 1 holds a list where an object is expected: a .json file is read as JSON lines"),
        ("a.json", PRETTY, "line 1 is not JSON (Expecting property name enclosed in double quotes): a .json file"),
        ("a.csv", b"text\na\n", "a.csv is not read, since a .csv file is more than plain text: write its text to"),
        ("a.TSV", b"text\na\n", "since a .tsv file is more than"),
        ("a.xml", b"<a/>", "since a .xml file"),
        ("a.pdf", b"%PDF-1.4", "since a .pdf file"),
        ("a.docx", b"PK\x03\x04", "since a .docx file"),
        ("a.txt.gz", gzip.compress(b"a", mtime=0), "since a .gz file"),
        ("a.ipynb", b"{}", "since a .ipynb file"),
        ("a.txt", b"some\0thing", "a.txt holds a NUL byte: it is not a text file"),
        ("a", b"\x7fELF\x02\x01\0", "holds a NUL byte"),
        ("a.txt", "text".encode("utf-16"), "byte 0 is 0xff; it begins as UTF-16 does: convert it to UTF-8"),
        (
            "a.log",
            lines(PLAIN),
            "begins with a JSON object: name it .jsonl to read JSON lines, or .txt to read it as text",
        ),
    ],
)
def test_other_files_are_refused_with_a_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert sentence in mistake(tmp_path / name)


def test_text_is_read_whatever_harmless_name_it_has(tmp_path: Path) -> None:
    for name in ("notes", "a.py", "b.tex", "c.txt", "d.log"):
        (tmp_path / name).write_text("{braces} and text")
        assert read(tmp_path / name) == ["{braces} and text"]
    (tmp_path / "c.txt").write_bytes(lines(PLAIN))  # asked for by its name
    assert read(tmp_path / "c.txt") == [lines(PLAIN).decode()]


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/stdin"), Path("/dev/null")):
        assert mistake(path).startswith(f"{path} is not a file: it would be read twice; write the text to a file")


def test_a_directory_leaves_out_what_is_hidden_and_counts_what_is_other(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints/a.txt", ".git/b.md", "c/.d.txt", "e.txt", "c/F.MD", "g.jsonl", "h.csv", "i"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    config = SourceConfig(path=str(tmp_path / "in"), field="text")
    assert list(documents(config)) == ["c/F.MD", "e.txt"]
    left, field = source_remarks(config)
    kinds = "1 .csv, 1 .jsonl, 1 without ending"
    assert left == f"{tmp_path / 'in'}: {kinds} left out, since only .txt and .md files of a directory are read"
    assert field.startswith('the field "text" is not used: ')


def test_a_directory_without_a_text_file_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(PLAIN))
    assert mistake(tmp_path).startswith(f"{tmp_path}: 1 .jsonl left out, since only .txt and .md")


@pytest.mark.parametrize(
    ("separator", "named"), [("\n\n\n", r'"\n\n\n"'), ("\\n\\n", r'"\\n\\n"'), ("nn", '"nn"'), ("%%", '"%%"')]
)
def test_a_separator_that_never_occurs_is_named(tmp_path: Path, separator: str, named: str) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    sentence = mistake(tmp_path / "a.txt", separator=separator)
    assert sentence.startswith(f"the separator {named} does not occur in {tmp_path / 'a.txt'}")
    assert ("in a shell, write 'source.separator=\"\\n\\n\"'" in sentence) == (separator in ("\\n\\n", "nn"))


def test_a_separator_may_be_missing_in_some_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one%%two")
    (tmp_path / "b.txt").write_text("three")
    assert read(tmp_path, separator="%%") == ["one", "two", "three"]


def test_what_is_not_used_is_said(make: Make, tmp_path: Path) -> None:
    from pico_train.data.prepare import prepare

    from .conftest import settings

    (tmp_path / "a.jsonl").write_bytes(lines(PLAIN * 20))
    said: list[str] = []
    prepare(settings({"path": str(tmp_path / "a.jsonl"), "separator": "%%"}, tmp_path / "out", {}), said.append)
    assert said[0] == f"the separator is not used: {tmp_path / 'a.jsonl'} is not read as text files"
