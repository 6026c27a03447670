"""Sentences about a configuration that its schema refuses, the same in both libraries.

The schema's errors are pydantic's, as dictionaries. Their locations hold names of types beside the
keys of the user, wherever a value may be of several types; the configuration itself tells which
parts are keys.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pico_contract.errors import did_you_mean, nearest, shorten
from pico_contract.overrides import origin

Error = Mapping[str, Any]
"""An error as pydantic's `ValidationError.errors()` lists it."""
Keys = tuple[str | int, ...]
"""Where a value lies: keys of mappings and indices of lists."""

MOST_SENTENCES = 20
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_EXPECTED = {
    "model_type": "should be a section",
    "model_attributes_type": "should be a section",
    "dataclass_type": "should be a section",
    "dict_type": "should be a section",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "path_type": "should be a path",
    "finite_number": "should be a finite number",
}
"""Pydantic's error type -> what we say instead of its words for a Python programmer."""


def describe(
    kind: Any,
    raw: Any,
    errors: Sequence[Error],
    source: str,
    overrides: Sequence[str] = (),
    under: str = "",
) -> str:
    """All errors of a configuration: one sentence, or a head line and a line for each.

    Args:
        kind: the model or dataclass that refused `raw`.
        raw: the configuration as JSON has it.
        source: the file's name, for messages.
        overrides: those of the command line, which may be at fault instead of the file.
        under: dotted key of the section that `raw` is.
    """
    prefix: Keys = tuple(filter(None, under.split(".")))
    found = [
        (origin(source, dotted((*prefix, *keys)), overrides), text)
        for keys, text in _texts(kind, raw, errors, prefix)
    ]
    if len(found) == 1:
        place, text = found[0]
        return f"{place}: {text}"
    places = {place for place, _ in found}
    head = places.pop() if len(places) == 1 else source
    lines = [text if place == head else f"{place}: {text}" for place, text in found]
    shown = lines[:MOST_SENTENCES]
    if len(lines) > MOST_SENTENCES:
        shown.append(f"and {len(lines) - MOST_SENTENCES} more")
    return "\n  ".join([f"{head}: {len(lines)} mistakes", *shown])


def dotted(keys: Keys) -> str:
    """Join keys as an override writes them."""
    return ".".join(map(str, keys))


def _texts(
    kind: Any, raw: Any, errors: Sequence[Error], prefix: Keys
) -> Iterator[tuple[Keys, str]]:
    """(where, sentence) of every mistake; of one value that fits none of its types there is a
    single sentence."""
    located = [(_keys(error, raw), error) for error in errors]
    groups: dict[Keys, list[Error]] = {}
    for keys, error in located:
        if not _is_other_type(keys, error, located):
            groups.setdefault(keys, []).append(error)
    meant = {
        (*keys[:-1], name)
        for keys, group in groups.items()
        for name in _suggested(kind, keys, group)
    }
    for keys, group in groups.items():
        if group[0]["type"] == "missing" and keys in meant:
            continue  # a required key that is misspelt is both missing and unknown; the second says more
        # A combination of values lies in no key: the file and the overrides may each hold a part of
        # it.
        where = () if group[0]["type"] == "value_error" else keys
        yield where, _sentence(kind, keys, group, prefix)


def _sentence(kind: Any, keys: Keys, group: Sequence[Error], prefix: Keys) -> str:
    first, key = group[0], shorten(dotted((*prefix, *keys)))
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    if first["type"] in _UNKNOWN:
        section = shorten(dotted((*prefix, *keys[:-1])))
        where = f'in section "{section}"' if section else "at the top level"
        return (
            f'unknown key "{key}" {where}{did_you_mean(str(keys[-1]), valid_keys(kind, keys[:-1]))}'
        )
    if first["type"] == "missing":
        return f'the key "{key}" is missing'
    return f"{key}: {_expected(group)} (it is {_given(first['input'])})"


def _given(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, float):
        return repr(value)
    return shorten(json.dumps(value, ensure_ascii=False))


def _expected(group: Sequence[Error]) -> str:
    """What a value should be, of all types that it may have."""
    messages = [
        _EXPECTED.get(error["type"], error["msg"].removeprefix("Input ")) for error in group
    ]
    first, *others = dict.fromkeys(f"{message[:1].lower()}{message[1:]}" for message in messages)
    return " or ".join([first, *(message.removeprefix("should be ") for message in others)])


def _suggested(kind: Any, keys: Keys, group: Sequence[Error]) -> list[str]:
    if group[0]["type"] not in _UNKNOWN:
        return []
    return nearest(str(keys[-1]), sorted(valid_keys(kind, keys[:-1])))


def _is_other_type(keys: Keys, error: Error, located: Sequence[tuple[Keys, Error]]) -> bool:
    """Whether a value fails as one of its types, but as another only in what it holds, which says
    more."""
    deeper = any(len(other) > len(keys) and other[: len(keys)] == keys for other, _ in located)
    return deeper and error["type"].endswith("_type")


def _keys(error: Error, raw: Any) -> Keys:
    """Where an error lies in `raw`, without the names of types in its location."""
    location = error["loc"]
    is_missing = error["type"] == "missing"
    walked = location[:-1] if is_missing else location
    ways = list(_ways(walked, raw))
    fitting = (keys for keys, value in ways if value == error["input"])
    keys = next(fitting, ways[0][0] if ways else ())
    return (*keys, location[-1]) if is_missing else keys


def _ways(location: Sequence[str | int], value: Any) -> Iterator[tuple[Keys, Any]]:
    """(keys, value there) for each way to read a location as keys of `value` with names of types
    between them."""
    if not location:
        yield (), value
        return
    part, *rest = location
    if _holds(value, part):
        for keys, inner in _ways(rest, value[part]):
            yield (part, *keys), inner
    if isinstance(part, str):
        yield from _ways(rest, value)


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def valid_keys(kind: Any, keys: Keys) -> list[str]:
    """The keys that the section at `keys` of a model or dataclass may have."""
    for key in keys:
        kind = _inner(kind, key)
    return list(_fields(kind))


def _inner(kind: Any, key: str | int) -> Any:
    """The type of what a type holds at `key`."""
    members = [
        member for member in _members(kind) if typing.get_origin(member) in (tuple, list, dict)
    ]
    if isinstance(key, int) or members:
        return next(
            (
                typing.get_args(member)[-1 if typing.get_origin(member) is dict else 0]
                for member in members
            ),
            None,
        )
    return _fields(kind).get(key)


def _fields(kind: Any) -> dict[str, Any]:
    """Field name -> type, of every section that a value of this type may be."""
    found: dict[str, Any] = {}
    for member in _members(kind):
        if hasattr(member, "model_fields"):
            found |= {name: info.annotation for name, info in member.model_fields.items()}
        elif isinstance(member, type) and dataclasses.is_dataclass(member):
            hints = typing.get_type_hints(member)
            found |= {field.name: hints[field.name] for field in dataclasses.fields(member)}
    return found


def _members(kind: Any) -> Iterator[Any]:
    """The types that a value may have, looking through Annotated and unions."""
    origin_of_kind = typing.get_origin(kind)
    if origin_of_kind is Annotated:
        yield from _members(typing.get_args(kind)[0])
    elif origin_of_kind in (typing.Union, types.UnionType):
        for member in typing.get_args(kind):
            yield from _members(member)
    else:
        yield kind
