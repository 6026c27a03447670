"""Parsed JSON as values of declared types: dataclasses, lists, dictionaries, numbers and text."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from pico_contract.errors import DamagedError, shorten


def non_finite(raw: Any, where: str) -> str | None:
    """A sentence that names the first number in `raw` that JSON does not have, else None."""
    if isinstance(raw, float) and not math.isfinite(raw):
        return f"{where} is {raw}, which is no number of JSON"
    inner = (
        raw.items()
        if isinstance(raw, dict)
        else enumerate(raw)
        if isinstance(raw, list | tuple)
        else ()
    )
    return next(
        (found for key, value in inner if (found := non_finite(value, f"{where}: {key}"))), None
    )


def build(kind: Any, raw: Any, where: str) -> Any:
    """`raw` (parsed JSON) as `kind` (a type annotation), or a DamagedError naming the place in the
    file."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return raw
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), raw, where)
    if origin in (typing.Union, types.UnionType):
        if raw is None and type(None) in arguments:
            return None
        return build(next(a for a in arguments if a is not type(None)), raw, where)
    if origin is dict and isinstance(raw, dict):
        return {key: build(arguments[1], value, f"{where}: {key}") for key, value in raw.items()}
    if origin is list and isinstance(raw, list):
        return [build(arguments[0], value, f"{where}[{i}]") for i, value in enumerate(raw)]
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if isinstance(kind, type) and type(raw) is kind:
        return raw
    raise DamagedError(
        f"{where} should be {getattr(kind, '__name__', kind)} but is {shorten(repr(raw))}"
    )


def _build_dataclass(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise DamagedError(f"{where} should be an object but is {shorten(repr(raw))}")
    hints = typing.get_type_hints(kind)
    values = {}
    for item in dataclasses.fields(kind):
        if item.name in raw:
            values[item.name] = build(hints[item.name], raw[item.name], f"{where}: {item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise DamagedError(f'{where} lacks the key "{item.name}"')
    return kind(**values)
