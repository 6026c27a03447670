"""The YAML of both libraries: the core schema of YAML 1.2, strict and bounded. Nothing else imports
PyYAML.

PyYAML scans and parses; this module alone decides what a scalar means, because PyYAML follows YAML
1.1, where 010 is 8, 1:30 is 90 and `off` is false. A key is always text, exactly as it is written,
and is given once in a mapping. Merge keys (`<<: *base`) work, and a mapping's own keys always win.
No tag constructs an object.

Source: https://yaml.org/spec/1.2.2, section 10.3.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from pico_contract.config_file import MAX_BYTES, read_text
from pico_contract.errors import UserError, shorten

MAX_DEPTH = 64
"""Nesting of lists and mappings."""
MAX_VALUES = 100_000
"""Values of a document once its aliases are expanded."""
MAX_DIGITS = 1_000
"""Characters of one number."""

_CORE_SCHEMA = {
    "null": re.compile(r"null|Null|NULL|~|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    "str": re.compile(r".*", re.DOTALL),
}
"""Type -> the plain scalars that have it; the first that matches wins. Section 10.3.2 of the
specification."""
_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"


def read_mapping(path: Path) -> dict[str, Any]:
    """Read the mapping in the YAML file `path`; an empty file is an empty mapping.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a regular file, cannot be read, is not YAML, or holds something else;
            names the position.
    """
    raw = parse(read_text(path), str(path))
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        kind = "a list" if isinstance(raw, list) else f"the value {shorten(repr(raw))}"
        raise UserError(f"{path} should hold a mapping of keys to values but holds {kind}")
    return raw


def parse(text: str, name: str) -> Any:
    """Parse one YAML document; None where it is empty. `name` stands for the text in messages.

    Raises:
        UserError: not YAML 1.2, or beyond a bound of this module; names line and column.
    """
    if len(text) > MAX_BYTES:
        raise UserError(
            f"{name} is longer than a configuration may be ({MAX_BYTES:,} characters)"
        )
    try:
        return _Document(text, name).value()
    except yaml.reader.ReaderError as error:
        where = _line_and_column(text, error.position)
        character = f"the character U+{error.character:04X} is not allowed"
        raise UserError(f"{name} is not valid YAML: {where}: {character}") from None
    except yaml.MarkedYAMLError as error:
        context = f"{error.context}: " if error.context else ""
        mark = error.problem_mark or error.context_mark
        _refuse(name, mark, _explained(f"{context}{error.problem}", text, mark))


def _line_and_column(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return f"line {line}, column {column}"


def dump(raw: Mapping[str, Any]) -> str:
    """Write `raw` as YAML, keys in their order; `parse` gives an equal value back.

    Text that YAML 1.1 or 1.2 would read as anything else is quoted, so other programs read it as
    text as well.
    """
    return yaml.dump(dict(raw), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Anchored(NamedTuple):
    """The value that an alias stands for, with its size and its levels of nesting."""

    value: Any
    size: int
    height: int


class _Document:
    """One document, built from PyYAML's events."""

    def __init__(self, text: str, name: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._name = name
        self._anchors: dict[
            str, _Anchored | None
        ] = {}  # None while the anchored collection is open
        self._values = 0

    def value(self) -> Any:
        """The document's value; the only one of the stream."""
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._node(next(self._events), 1)
        next(self._events)  # the end of the document
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._refuse(event, "a second document begins; a configuration is a single one")
        return value

    def _node(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        before = self._values
        self._count(event, 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value: Any = self._scalar(event)
        else:
            value = self._collection(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(
                value, self._values - before, _height(value)
            )
        return value

    def _collection(self, event: Any, depth: int) -> Any:
        self._require_depth(event, depth)
        is_list = isinstance(event, yaml.SequenceStartEvent)
        if event.tag not in (None, "!", f"{_TAG}{'seq' if is_list else 'map'}"):
            self._refuse_tag(event)
        return self._sequence(depth) if is_list else self._mapping(depth)

    def _sequence(self, depth: int) -> list[Any]:
        values = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._node(event, depth + 1))
        return values

    def _mapping(self, depth: int) -> dict[str, Any]:
        # Kept apart, since a mapping's own keys win over merged ones wherever `<<` stands.
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            if key in lines:
                self._refuse(
                    event,
                    f'the key "{shorten(key)}" is given twice (first in line {lines[key]})',
                )
            lines[key] = event.start_mark.line + 1
            value_event = next(self._events)
            value = self._node(value_event, depth + 1)
            if key == _MERGE and event.style is None:
                merged = self._merged(value_event, value)
            else:
                own[key] = value
        return {**merged, **own}

    def _key(self, event: Any) -> str:
        """The text of a key, whatever type it would have as a value."""
        if not isinstance(event, yaml.ScalarEvent):
            self._refuse(
                event, "a key should be text; quote braces and brackets that belong to a text"
            )
        if event.tag not in (None, "!", f"{_TAG}str"):
            self._refuse_tag(event)
        if event.value == "" and event.style is None:
            self._refuse(event, "a key is missing before the colon")
        self._require_text(event)
        self._count(event, 1)
        return str(event.value)

    def _merged(self, event: Any, value: Any) -> dict[str, Any]:
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, dict) for part in parts):
            self._refuse(
                event,
                f"{_MERGE} merges a mapping, or a list of mappings, and not another value",
            )
        merged: dict[str, Any] = {}
        for part in parts:
            merged = {**part, **merged}  # the first of several wins
        return merged

    def _alias(self, event: Any, depth: int) -> Any:
        if event.anchor not in self._anchors:
            self._refuse(
                event,
                f'the alias "*{shorten(event.anchor)}" has no anchor before it; quote a text with "*"',
            )
        anchored = self._anchors[event.anchor]
        # The collection is still open: the value would contain itself.
        if anchored is None:
            self._refuse(
                event,
                f'the alias "*{shorten(event.anchor)}" lies inside its own anchor, which has no end',
            )
        # Every use counts in full, so that a few lines of nested aliases cannot expand to
        # gigabytes.
        self._count(event, anchored.size)
        self._require_depth(event, depth + anchored.height - 1)
        # Each use gets a copy, because overrides change sections in place.
        return copy.deepcopy(anchored.value)

    def _scalar(self, event: Any) -> Any:
        self._require_text(event)
        kinds = self._possible_kinds(event)
        fitting = [kind for kind in kinds if _CORE_SCHEMA[kind].fullmatch(event.value)]
        if not fitting:
            self._refuse(event, f"{shorten(repr(event.value))} is not of the type {kinds[0]}")
        return self._value_of(event, fitting[0])

    def _possible_kinds(self, event: Any) -> list[str]:
        """List the types that a scalar may have by its tag and its quotes."""
        if event.tag is None:
            is_plain = event.style is None
            return list(_CORE_SCHEMA) if is_plain else ["str"]
        # A lone "!" asks YAML not to resolve the scalar, which leaves it as text.
        if event.tag == "!":
            return ["str"]
        kind = event.tag.removeprefix(_TAG)
        if event.tag == kind or kind not in _CORE_SCHEMA:
            self._refuse_tag(event)
        return [kind]

    def _value_of(self, event: Any, kind: str) -> Any:
        if kind in ("int", "float"):
            return self._number(event, kind)
        if kind == "bool":
            return event.value[0] in "tT"
        return None if kind == "null" else event.value

    def _number(self, event: Any, kind: str) -> int | float:
        text = event.value
        if len(text) > MAX_DIGITS:
            self._refuse(
                event, f"a number of {len(text):,} characters; at most {MAX_DIGITS:,} are read"
            )
        if kind == "int":
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text, base)
        # YAML writes .inf and .nan where Python reads inf and nan.
        number = float(re.sub(r"\.(?=inf|nan)", "", text, flags=re.IGNORECASE))
        is_stated = "inf" in text.lower()
        if math.isinf(number) and not is_stated:
            self._refuse(event, f"the number {shorten(text)} is too large")
        return number

    def _require_text(self, event: Any) -> None:
        if any("\ud800" <= character <= "\udfff" for character in event.value):
            self._refuse(event, "half a surrogate pair is not a character")

    def _require_depth(self, event: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._refuse(event, f"nested more than {MAX_DEPTH} levels deep")

    def _count(self, event: Any, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            self._refuse(
                event, f"holds more than {MAX_VALUES:,} values, with its aliases expanded"
            )

    def _refuse_tag(self, event: Any) -> NoReturn:
        tag = event.tag.replace(_TAG, "!!")
        self._refuse(
            event,
            f'the tag "{shorten(tag)}" is not allowed: a configuration holds plain values only',
        )

    def _refuse(self, event: Any, problem: str) -> NoReturn:
        _refuse(self._name, event.start_mark, problem)


def _height(value: Any) -> int:
    """Levels of lists and mappings in `value`."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_height, inner), default=0)


def _refuse(name: str, mark: Any, problem: str) -> NoReturn:
    raise UserError(
        f"{name} is not valid YAML: line {mark.line + 1}, column {mark.column + 1}: {problem}"
    )


def _explained(problem: str, text: str, mark: Any) -> str:
    """Return the parser's `problem`, with the remedy if a tab causes it."""
    sentence = " ".join(shorten(problem, 300).split())
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    has_tab = "\t" in line[: mark.column + 1]
    return f"{sentence}; replace the tab by spaces" if has_tab else sentence


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text for either version of YAML and writes equal values without
    aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # A line separator is a line break in one version of YAML only; escaped, it is itself in both.
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(f"{_TAG}str", text, style)


_Dumper.add_representer(str, _represent_text)
for _kind, _pattern in _CORE_SCHEMA.items():
    if _kind != "str":
        _Dumper.add_implicit_resolver(
            f"{_TAG}{_kind}", re.compile(f"(?:{_pattern.pattern})$"), None
        )
