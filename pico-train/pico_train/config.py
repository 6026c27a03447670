"""Strict configuration: defaults < YAML file < dotted overrides. It owns no fields; each room declares its own.

An unknown key, at any depth, is an error that names the nearest known one: most unknown keys are typos, and training
with a default in their place wastes the run.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pico_contract.errors import UserError, did_you_mean
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class OperationMark:
    """Marks a field that may change between sessions of one run (how it is carried out, not what it is)."""


T = TypeVar("T")
Operation = Annotated[T, OperationMark()]
S = TypeVar("S", bound=Section)


def load(kind: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Read `path` (YAML; None for an empty file), apply `overrides` such as `train.steps=100`, and check.

    Raises:
        UserError: no such file, not YAML, a key given twice, an unknown key, a wrong type, an impossible value;
            one sentence that names file (or override) and key.
    """
    raw = read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply(raw, override)
    return validate(kind, raw, str(path) if path is not None else "the command line", overrides)


def validate(kind: type[S], raw: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> S:
    """`raw` as `kind`, or a UserError whose sentence names `source` and the key."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(_sentence(kind, error, source, overrides)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a key given twice in one mapping is refused."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"there is no configuration file {path}{did_you_mean(path.name, siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a configuration file ({error})") from None
    try:
        raw = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{path} should hold a mapping of keys to values but holds a {type(raw).__name__}")
    return raw


def to_yaml(config: Section) -> str:
    """The resolved configuration; feeding it back gives an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def identity(config: Section) -> dict[str, Any]:
    """Dotted key -> value of every field that is not marked as operation: what makes a run this run."""
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
            values.update({f"{prefix}{name}.{f.name}": getattr(value, f.name) for f in fields(value)})
        else:
            values[f"{prefix}{name}"] = TypeAdapter(Any).dump_python(value, mode="json")


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f'"{override}" is not an override: write key=value, for example train.steps=100')
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError:
        raise UserError(f'the value of the override "{override}" is not valid YAML') from None
    *parents, leaf = key.split(".")
    section = raw
    for part in parents:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise UserError(f'the override "{override}" goes below "{part}", which is a value and not a section')
    section[leaf] = value


def _sentence(kind: type[BaseModel], error: ValidationError, source: str, overrides: Sequence[str]) -> str:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"] if not _is_type_tag(part)]
    key = ".".join(location)
    if any(override.partition("=")[0] == key for override in overrides):
        source = "the command line"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _keys_of(kind, location[:-1])
        section = f'section "{".".join(location[:-1])}"' if location[:-1] else "the top level"
        near = did_you_mean(location[-1], known)
        return f'{source}: unknown key "{key}" in {section}{near}'
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if first["type"] == "missing":
        return f'{source}: the key "{key}" is missing'
    if first["type"] == "value_error":
        return f"{source}: {key}: {message}" if key else f"{source}: {message}"
    given = first["input"] if not isinstance(first["input"], dict) else "a section"
    return f"{source}: {key}: {message[:1].lower()}{message[1:]} (it is {given!r})"


def _is_type_tag(part: Any) -> bool:
    """Pydantic adds the name of the union member that it tried; such parts are no keys of ours."""
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in ("int", "str", "float", "bool"))


def _keys_of(kind: Any, path: Sequence[str]) -> list[str]:
    for part in path:
        kind = _annotations(kind).get(part)
    return list(_annotations(kind))


def _annotations(kind: Any) -> dict[str, Any]:
    """Field name -> type of a section or dataclass (looking through Optional and Annotated); {} for anything else."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _annotations(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return {k: v for member in typing.get_args(kind) for k, v in _annotations(member).items()}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: info.annotation for name, info in kind.model_fields.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return typing.get_type_hints(kind)
    return {}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML parsers otherwise drop silently."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f'the key "{key}" is given twice', key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
