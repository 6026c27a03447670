"""Parsed JSON as values of declared types: dataclasses, lists, dictionaries, numbers and text."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from typing import Any

from pico_contract.errors import DamagedError, shorten


def non_finite(raw: Any, where: str) -> str | None:
    """Name the first number in `raw` that JSON does not have, in a sentence; None if there is
    none."""
    if isinstance(raw, float) and not math.isfinite(raw):
        return f"{where} is {raw}, which is not a number of JSON"
    for key, value in _entries(raw):
        sentence = non_finite(value, f"{where}: {key}")
        if sentence is not None:
            return sentence
    return None


def _entries(raw: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(raw, dict):
        return raw.items()
    return enumerate(raw) if isinstance(raw, list | tuple) else ()


def build(kind: Any, raw: Any, where: str) -> Any:
    """Build a value of type `kind` from parsed JSON, or raise a DamagedError that names the place
    in the file."""
    if kind is Any:
        return raw
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), raw, where)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _build_optional(kind, raw, where)
    if origin is not None and type(raw) is origin:
        return _build_collection(kind, raw, where)
    # JSON does not tell 1 from 1.0, and `type` tells true from 1.
    if kind is float and type(raw) is int:
        return float(raw)
    if isinstance(kind, type) and type(raw) is kind:
        return raw
    expected = getattr(kind, "__name__", kind)
    raise DamagedError(f"{where} should be {expected} but is {shorten(repr(raw))}")


def _build_optional(kind: Any, raw: Any, where: str) -> Any:
    """Build a value of a type or None; no manifest has other unions."""
    members = typing.get_args(kind)
    if raw is None and type(None) in members:
        return None
    member = next(member for member in members if member is not type(None))
    return build(member, raw, where)


def _build_collection(kind: Any, raw: Any, where: str) -> Any:
    *_, inner = typing.get_args(kind)
    if isinstance(raw, dict):
        return {key: build(inner, value, f"{where}: {key}") for key, value in raw.items()}
    return [build(inner, value, f"{where}[{index}]") for index, value in enumerate(raw)]


def _build_dataclass(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise DamagedError(f"{where} should be an object but is {shorten(repr(raw))}")
    hints = typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        name = field.name
        # Keys that are not fields are ignored: a newer minor version may add some.
        if name in raw:
            values[name] = build(hints[name], raw[name], f"{where}: {name}")
        elif not _has_default(field):
            raise DamagedError(f'{where} lacks the key "{name}"')
    return kind(**values)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return not (
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
