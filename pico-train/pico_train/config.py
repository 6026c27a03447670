"""Strict configuration: defaults < YAML file < dotted overrides. It owns no fields; each room
declares its own.

An unknown key, at any depth, is an error that names the nearest known one: most unknown keys are
typos, and training with a default in their place wastes the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pico_contract import strict_yaml
from pico_contract.config_errors import describe
from pico_contract.errors import UserError, did_you_mean
from pico_contract.overrides import apply_overrides, origin
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def completed(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fill in what follows from other keys of `raw`, before it is checked; nothing by
        default."""
        return raw


class OperationMark:
    """Marks a field that may change between sessions of one run (how it is carried out, not what it
    is)."""


T = TypeVar("T")
Operation = Annotated[T, OperationMark()]
S = TypeVar("S", bound=Section)


def load(kind: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Read `path` (YAML; None for an empty file), apply `overrides` such as `train.steps=100`, and
    check.

    Raises:
        UserError: no such file, not YAML, a key given twice, unknown keys, wrong types, impossible
            values; names file (or override) and key of each.
    """
    raw = read_yaml(path) if path is not None else {}
    apply_overrides(raw, overrides)
    return validate(kind, raw, str(path) if path is not None else "the command line", overrides)


def validate(
    kind: type[S],
    raw: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    under: str = "",
) -> S:
    """Check `raw` against `kind`; a UserError names `source` and every key at fault, below the
    section `under`.

    Checked as JSON in strict mode: text is not a number, true is not a number, and 10.0 is not an
    integer, while a list serves as a tuple and text as a path.
    """
    infinite = [_infinite(keys, value) for keys, value in _leaves(raw, ()) if _is_infinite(value)]
    errors: list[Mapping[str, Any]] = list(infinite)
    try:
        text = json.dumps(kind.completed(raw), default=str)
        checked = kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        errors += [
            one for one in error.errors(include_url=False) if not _follows(one["loc"], infinite)
        ]
    except UserError as error:
        raise UserError(f"{origin(source, '', overrides)}: {error}") from None
    if errors:
        raise UserError(describe(kind, json.loads(text), errors, source, overrides, under))
    return checked


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _infinite(keys: tuple[str | int, ...], value: float) -> dict[str, Any]:
    """An error like pydantic's, which does not look into mappings of options."""
    return {"type": "finite_number", "loc": keys, "msg": "", "input": value}


def _follows(location: tuple[str | int, ...], infinite: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an error lies at a number that is not finite, or at a section that holds one."""
    return any(one["loc"][: len(location)] == location for one in infinite)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; UserError where there is none, see `strict_yaml`."""
    try:
        return strict_yaml.read_mapping(path)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(
            f"there is no configuration file {path}{did_you_mean(path.name, siblings)}"
        ) from None


def to_yaml(config: Section) -> str:
    """Write the resolved configuration; feeding it back gives an equal one."""
    return strict_yaml.dump(config.model_dump(mode="json"))


def identity(config: Section) -> dict[str, Any]:
    """Dotted key -> value of every field that is not marked as operation: what makes a run this
    run."""
    values: dict[str, Any] = {}
    _collect_identity(config, "", values)
    return values


def _collect_identity(section: Any, prefix: str, values: dict[str, Any]) -> None:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if any(isinstance(mark, OperationMark) for mark in info.metadata):
            continue
        if isinstance(value, Section):
            _collect_identity(value, f"{prefix}{name}.", values)
        elif is_dataclass(value):
            values.update(
                {f"{prefix}{name}.{f.name}": getattr(value, f.name) for f in fields(value)}
            )
        else:
            values[f"{prefix}{name}"] = TypeAdapter(Any).dump_python(value, mode="json")


def _leaves(raw: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(keys, value) of everything in `raw` that is neither mapping nor list."""
    if isinstance(raw, Mapping | list | tuple):
        for name, value in raw.items() if isinstance(raw, Mapping) else enumerate(raw):
            yield from _leaves(value, (*keys, name))
    else:
        yield keys, raw
