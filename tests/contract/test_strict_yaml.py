"""One YAML grammar, that of YAML 1.2's core schema: what a scalar is, what is refused, and what is written."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pico_contract import strict_yaml
from pico_contract.errors import UserError
from pico_contract.strict_yaml import dump, parse, read_mapping


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-010", -10),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("+5", 5),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("1:30:00.5", "1:30:00.5"),
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("1E+5", 1e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("1e", "1e"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("inf", "inf"),
        ("nan", "nan"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("", None),
        ("nULL", "nULL"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("=", "="),
        ("<<", "<<"),
        ('"010"', "010"),
        ("'null'", "null"),
        ("!!str 010", "010"),
        ("! 010", "010"),
        ("!!int '5'", 5),
        ("!!float 5", 5.0),
        ("|\n  010\n", "010\n"),
    ],
)
def test_a_scalar_is_what_the_core_schema_says(text: str, value: Any) -> None:
    found = parse(f"key: {text}", "here")["key"]
    assert (type(found), found) == (type(value), value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse(".nan", "here"))


def test_a_key_is_text_as_it_is_written() -> None:
    assert list(parse("1: a\n010: b\nnull: c\ntrue: d\n1.0: e\n2024-01-01: f\n~: g", "here")) == [
        "1",
        "010",
        "null",
        "true",
        "1.0",
        "2024-01-01",
        "~",
    ]


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("a: &a {x: 1}\nb: {<<: *a, x: 2}", {"x": 2}),
        ("a: &a {x: 1}\nb: {x: 2, <<: *a}", {"x": 2}),
        ("a: &a {x: 1}\nb: {<<: [*a, {x: 3, y: 4}]}", {"x": 1, "y": 4}),
        ('b: {"<<": 3}', {"<<": 3}),
    ],
)
def test_a_mappings_own_keys_win_over_merged_ones(text: str, merged: dict[str, Any]) -> None:
    assert parse(text, "here")["b"] == merged


def test_an_alias_is_a_copy() -> None:
    found = parse("a: &a {x: 1}\nb: *a", "here")
    found["a"]["x"] = 2
    assert found["b"] == {"x": 1}


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1", 'the key "a" is given twice (first in line 1)'),
        ("a: {b: 1, b: 2}", "line 1, column 11", 'the key "b" is given twice (first in line 1)'),
        ("a: {<<: {x: 1}, <<: {y: 2}}", "line 1, column 17", 'the key "<<" is given twice'),
        ("a: {<<: 3}", "line 1, column 9", "<< merges a mapping, or a list of mappings"),
        ("a:\n\tb: 1", "line 2, column 1", "replace the tab by spaces"),
        ("a:\tb", "line 1, column 3", "replace the tab by spaces"),
        ("a: [1, 2", "line 1, column 9", "while parsing a flow sequence: expected ',' or ']'"),
        ("a: b: c", "line 1, column 5", "mapping values are not allowed here"),
        ("a: 'b", "line 1, column 6", "found unexpected end of stream"),
        ("a: %b", "line 1, column 4", "found character '%' that cannot start any token"),
        ("a: x\0y", "line 1, column 5", "the character U+0000 is not allowed"),
        ("a: \x1b[31m", "line 1, column 4", "the character U+001B is not allowed"),
        ('a: "\\ud800"', "line 1, column 4", "half a surrogate pair is not a character"),
        ("a: *b", "line 1, column 4", 'the alias "*b" has no anchor before it'),
        ("a: &a [*a]", "line 1, column 8", 'the alias "*a" lies inside its own anchor'),
        ("a: &a {b: {c: *a}}", "line 1, column 15", 'the alias "*a" lies inside its own anchor'),
        ("a: !!python/object/apply:os.system [x]", "line 1, column 4", 'the tag "!!python/object/apply:os.system"'),
        ("a: !!binary aGk=", "line 1, column 4", 'the tag "!!binary" is not allowed'),
        ("a: !!timestamp 2024-01-01", "line 1, column 4", 'the tag "!!timestamp" is not allowed'),
        ("a: !!set {x}", "line 1, column 4", 'the tag "!!set" is not allowed'),
        ("a: !mine x", "line 1, column 4", 'the tag "!mine" is not allowed'),
        ("a: !!int x", "line 1, column 4", "'x' is not of the type int"),
        ("!!int 3: x", "line 1, column 1", 'the tag "!!int" is not allowed'),
        ("? [a]\n: b", "line 1, column 3", "a key should be text"),
        ("a: {{b}}", "line 1, column 5", "a key should be text; quote braces"),
        ("?\n: b", "line 1, column 2", "a key is missing before the colon"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "a second document begins"),
        ("a: 1e400", "line 1, column 4", "the number 1e400 is too large"),
        (f"a: {'9' * 1001}", "line 1, column 4", "a number of 1,001 characters; at most 1,000 are read"),
        (f"a: {'[' * 1000}", "line 1, column 67", "nested more than 64 levels deep"),
        (f"a: {'{b: ' * 1000}", "line 1, column 256", "nested more than 64 levels deep"),
    ],
)
def test_what_is_no_configuration_is_refused_where_it_stands(text: str, position: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, "here.yaml")
    message = str(caught.value)
    assert message.startswith(f"here.yaml is not valid YAML: {position}: ")
    assert problem in message
    assert "\n" not in message
    assert len(message) < 500


def exploding(links: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, links)]
    return "\n".join(lines)


def test_aliases_that_explode_are_refused_and_others_are_not() -> None:
    assert len(parse(exploding(4), "here")) == 4
    with pytest.raises(UserError, match="holds more than 100,000 values, with its aliases expanded"):
        parse(exploding(9), "here")


def test_aliases_that_nest_are_as_deep_as_what_they_stand_for() -> None:
    """Each line is 60 levels deep as it is written; together they would be 180."""
    lines = [f"a{i}: &a{i} {'[' * 60}{f'*a{i - 1}' if i else 'x'}{']' * 60}" for i in range(3)]
    with pytest.raises(UserError, match="line 2, column 69: nested more than 64 levels deep"):
        parse("\n".join(lines), "here")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "marked.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: x\r\nsteps: 3\r\n")
    assert read_mapping(file) == {"name": "x", "steps": 3}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"name: \xff", "is not text in UTF-8 (byte 0xff at offset 6): save it as UTF-8"),
        ("name: x".encode("utf-16"), "is not text in UTF-8 (byte 0xff at offset 0): save it as UTF-8"),
        (b"- a", "should hold a mapping of keys to values but holds a list"),
        (b"a" * 500, "should hold a mapping of keys to values but holds the value 'aaa"),
        (b"#" * (strict_yaml.MAX_BYTES + 1), "is larger than a configuration may be (1,048,576 bytes)"),
    ],
)
def test_a_file_that_holds_no_mapping_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    file = tmp_path / "here.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_mapping(file)
    assert str(caught.value).startswith(f"{file} {sentence}")


@pytest.mark.parametrize("content", ["", "# nothing but a comment\n", "---\n", "null"])
def test_an_empty_file_is_an_empty_mapping(tmp_path: Path, content: str) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(content)
    assert read_mapping(file) == {}


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{path} is not a regular file"):
            read_mapping(path)
    with pytest.raises(UserError, match="cannot be read as a configuration file: Is a directory"):
        read_mapping(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UserError, match="cannot be read as a configuration file: Too many levels of symbolic links"):
        read_mapping(tmp_path / "circle")
    with pytest.raises(UserError, match="cannot be read as a configuration file: File name too long"):
        read_mapping(tmp_path / ("x" * 5000))
    with pytest.raises(UserError, match="cannot be read as a configuration file: embedded null byte"):
        read_mapping(tmp_path / "a\0b")


texts = st.text(st.characters(codec="utf-8")) | st.text(
    " \t\n#:-?[]{},&*!|>'\"%@`=~.0123456789eoxnfysNaT<", max_size=12
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=12)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(texts, values))
@example({"a": ["010", "1:30", "off", "~", "1e5", "=", "<<", "0o17", "null", "yes", "2024-01-01", "", " ", "1_000"]})
@example({"a": [10**400, -0.0, 5e-324, 1.7976931348623157e308, 1e22, True, None]})
@example({"~": 1, "null": 2, "": 3, "<<": {"a": 1}, "010": 4, "- a": 5, "x" * 300: 6})
@example({"a": "\x85\u2028\u2029\ufeff\x00\x7f\U0001f600 \n\n  indented\n", "b": ["x " * 200]})
def test_what_is_written_is_read_back(raw: dict[str, Any]) -> None:
    assert repr(parse(dump(raw), "here") or {}) == repr(raw)


def test_equal_values_are_written_out_without_aliases() -> None:
    shared = [1, 2]
    assert dump({"a": shared, "b": shared}) == "a:\n- 1\n- 2\nb:\n- 1\n- 2\n"


@pytest.mark.parametrize("text", ["010", "1:30", "off", "~", "1e5", "=", "0o17", "yes", "1_000", "2024-01-01", "n"])
def test_other_programs_read_our_text_as_text(text: str) -> None:
    """C2.4: YAML 1.1, which PyYAML reads, and 1.2."""
    assert yaml.safe_load(dump({"a": text, text: 1})) == {"a": text, text: 1} == parse(dump({"a": text, text: 1}), "x")
