"""Sentences about a configuration that its schema refuses, the same in both libraries.

The schema's errors are pydantic's, as dictionaries. If a value may be of several types, their
locations hold names of types beside the keys of the user; the configuration itself tells which
parts are keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pico_contract.config_types import Keys, valid_keys
from pico_contract.errors import did_you_mean, nearest, shorten
from pico_contract.overrides import origin

Error = Mapping[str, Any]
"""An error as pydantic's `ValidationError.errors()` lists it."""

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
    """Describe all errors of a configuration: one sentence, or a head line and a line for each.

    Args:
        kind: the model or dataclass that refused `raw`.
        raw: the configuration as JSON has it.
        source: the file's name, for messages.
        overrides: the overrides of the command line, which may be at fault instead of the file.
        under: dotted key of the section that `raw` is.
    """
    prefix: Keys = tuple(filter(None, under.split(".")))
    mistakes = []
    for keys, text in _texts(kind, raw, errors, prefix):
        place = origin(source, dotted((*prefix, *keys)), overrides)
        mistakes.append((place, text))
    if len(mistakes) == 1:
        place, text = mistakes[0]
        return f"{place}: {text}"
    return _listed(mistakes, source)


def _listed(mistakes: Sequence[tuple[str, str]], source: str) -> str:
    """Put the (place, sentence) of several mistakes below one another, the place once if all share
    it."""
    first_place = mistakes[0][0]
    is_shared = all(place == first_place for place, _ in mistakes)
    head = first_place if is_shared else source
    lines = [f"{head}: {len(mistakes)} mistakes"]
    for place, text in mistakes[:MOST_SENTENCES]:
        lines.append(text if place == head else f"{place}: {text}")
    hidden = len(mistakes) - MOST_SENTENCES
    if hidden > 0:
        lines.append(f"and {hidden} more")
    return "\n  ".join(lines)


def dotted(keys: Keys) -> str:
    """Join keys as an override writes them."""
    return ".".join(map(str, keys))


def _texts(
    kind: Any, raw: Any, errors: Sequence[Error], prefix: Keys
) -> Iterator[tuple[Keys, str]]:
    """Yield (where, sentence) of every mistake; a value that fits none of its types has a single
    sentence."""
    groups = _by_keys(raw, errors)
    misspelt: set[Keys] = set()
    for keys, group in groups.items():
        misspelt.update(_suggested(kind, keys, group))
    for keys, group in groups.items():
        error_type = group[0]["type"]
        # A required key that is misspelt is both missing and unknown; the second says more.
        if error_type == "missing" and keys in misspelt:
            continue
        # A combination of values lies in no key: the file and the overrides may each hold a part of
        # it.
        where = () if error_type == "value_error" else keys
        yield where, _sentence(kind, keys, group, prefix)


def _by_keys(raw: Any, errors: Sequence[Error]) -> dict[Keys, list[Error]]:
    """Group errors by where they lie, without those of types that the value was not meant to
    have."""
    located = [(_keys(error, raw), error) for error in errors]
    groups: dict[Keys, list[Error]] = {}
    for keys, error in located:
        if not _is_other_type(keys, error, located):
            groups.setdefault(keys, []).append(error)
    return groups


def _sentence(kind: Any, keys: Keys, group: Sequence[Error], prefix: Keys) -> str:
    first = group[0]
    key = shorten(dotted((*prefix, *keys)))
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    if first["type"] in _UNKNOWN:
        *parents, last = keys
        section = shorten(dotted((*prefix, *parents)))
        where = f'in section "{section}"' if section else "at the top level"
        hint = did_you_mean(str(last), valid_keys(kind, tuple(parents)))
        return f'unknown key "{key}" {where}{hint}'
    if first["type"] == "missing":
        return f'the key "{key}" is missing'
    given = _given(first["input"])
    return f"{key}: {_expected(group)} (it is {given})"


def _given(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, float):
        return repr(value)
    return shorten(json.dumps(value, ensure_ascii=False))


def _expected(group: Sequence[Error]) -> str:
    """Say what a value should be, with every type that it may have."""
    messages = []
    for error in group:
        message = _EXPECTED.get(error["type"], error["msg"].removeprefix("Input "))
        messages.append(message[:1].lower() + message[1:])
    first, *others = dict.fromkeys(messages)
    alternatives = [message.removeprefix("should be ") for message in others]
    return " or ".join([first, *alternatives])


def _suggested(kind: Any, keys: Keys, group: Sequence[Error]) -> list[Keys]:
    """Suggest the key that an unknown one may stand for; nothing for other errors."""
    if group[0]["type"] not in _UNKNOWN:
        return []
    *parents, unknown = keys
    known = sorted(valid_keys(kind, tuple(parents)))
    return [(*parents, name) for name in nearest(str(unknown), known)]


def _is_other_type(keys: Keys, error: Error, located: Sequence[tuple[Keys, Error]]) -> bool:
    """Whether a value fails as one of its types, but as another only in what it holds, which says
    more."""
    deeper = any(len(other) > len(keys) and other[: len(keys)] == keys for other, _ in located)
    return deeper and error["type"].endswith("_type")


def _keys(error: Error, raw: Any) -> Keys:
    """Find where an error lies in `raw`, without the names of types in its location."""
    location = error["loc"]
    if error["type"] == "missing":
        *parents, missing = location
        return (*_existing_keys(parents, error["input"], raw), missing)
    return _existing_keys(location, error["input"], raw)


def _existing_keys(location: Sequence[str | int], value: Any, raw: Any) -> Keys:
    """Choose the reading of a location at which `raw` holds `value`, else the first one."""
    ways = list(_ways(location, raw))
    for keys, found in ways:
        if found == value:
            return keys
    return ways[0][0] if ways else ()


def _ways(location: Sequence[str | int], value: Any) -> Iterator[tuple[Keys, Any]]:
    """Yield (keys, value there) for each reading of a location as keys of `value` with names of
    types between them."""
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
