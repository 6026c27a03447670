"""Types of a configuration's fields, read from the models and dataclasses that declare them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

Keys = tuple[str | int, ...]
"""The place of a value: keys of mappings and indices of lists."""

_BOOLEANS = {"on": True, "yes": True, "off": False, "no": False}
"""Words that YAML 1.2 reads as text and YAML 1.1 as booleans."""


def read_booleans(kind: Any, value: Any) -> Any:
    """Return a configuration in which `on`, `off`, `yes` and `no` are booleans where the field is
    one.

    In a field that may be text, such as a choice of "auto", "on" or "off", they stay text.
    """
    if isinstance(value, Mapping):
        return {key: read_booleans(type_at(kind, key), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [read_booleans(type_at(kind, index), inner) for index, inner in enumerate(value)]
    if isinstance(value, str) and _is_boolean(kind):
        return _BOOLEANS.get(value.lower(), value)
    return value


def _is_boolean(kind: Any) -> bool:
    """Whether a field may be a boolean and may not be text."""
    members = list(_members(kind))
    may_be_text = str in members or any(
        typing.get_origin(member) is Literal for member in members
    )
    return bool in members and not may_be_text


def valid_keys(kind: Any, keys: Keys) -> list[str]:
    """List the keys that the section at `keys` of a model or dataclass may have."""
    for key in keys:
        kind = type_at(kind, key)
    return list(_fields(kind))


def type_at(kind: Any, key: str | int) -> Any:
    """Find the type of the value at `key` of a section, a mapping or a list; None if it is not
    known."""
    for member in _members(kind):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if isinstance(key, int) and origin in (tuple, list):
            return arguments[0]
        if isinstance(key, str) and origin is dict:
            return arguments[1]
    return _fields(kind).get(str(key))


def _fields(kind: Any) -> dict[str, Any]:
    """Collect field name -> type of every section that a value of this type may be."""
    fields: dict[str, Any] = {}
    for member in _members(kind):
        if hasattr(member, "model_fields"):
            for name, info in member.model_fields.items():
                fields[name] = info.annotation
        elif isinstance(member, type) and dataclasses.is_dataclass(member):
            # Postponed annotations are text in `field.type`; this resolves them.
            hints = typing.get_type_hints(member)
            for field in dataclasses.fields(member):
                fields[field.name] = hints[field.name]
    return fields


def _members(kind: Any) -> Iterator[Any]:
    """List the types that a value may have, looking through Annotated and unions."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        yield from _members(typing.get_args(kind)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(kind):
            yield from _members(member)
    else:
        yield kind
