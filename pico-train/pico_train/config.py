"""Strict configuration: defaults < YAML file < dotted overrides. It owns no fields; each room declares its own.

An unknown key, at any depth, is an error that names the nearest known one: most unknown keys are typos, and training
with a default in their place wastes the run.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pico_contract.errors import UserError, did_you_mean
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def completed(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fill in what follows from other keys of `raw`, before it is checked; nothing by default."""
        return raw


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


def validate(kind: type[S], raw: Mapping[str, Any], source: str, overrides: Sequence[str] = (), under: str = "") -> S:
    """`raw` as `kind`, or a UserError whose sentence names `source` and the key; `under` is the section of `raw`.

    Checked as JSON in strict mode: text is no number, true is no number, and 10.0 is no integer, while a list serves
    as a tuple and text as a path.
    """
    for key, value in _leaves(raw, under):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{_culprit(source, key, overrides)}: {key}: should be a finite number (it is {value})")
    try:
        return kind.model_validate_json(json.dumps(kind.completed(raw), default=str), strict=True)
    except ValidationError as error:
        raise UserError(_sentence(kind, error, source, overrides, under)) from None
    except UserError as error:
        raise UserError(f"{_culprit(source, '', overrides)}: {error}") from None


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
        detail = " ".join(str(error).split()).replace(' in "<unicode string>",', ",")
        raise UserError(f"{path} is not valid YAML: {detail}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{path} should hold a mapping of keys to values but holds a {type(raw).__name__}")
    return raw


def to_yaml(config: Section) -> str:
    """The resolved configuration; feeding it back gives an equal one."""
    return dump(config.model_dump(mode="json"))


def dump(raw: Mapping[str, Any]) -> str:
    """`raw` as YAML, its keys in their order."""
    return yaml.safe_dump(dict(raw), sort_keys=False, allow_unicode=True)


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


def _leaves(raw: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in `raw` that is neither mapping nor list."""
    if isinstance(raw, Mapping | list | tuple):
        for name, value in raw.items() if isinstance(raw, Mapping) else enumerate(raw):
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, raw


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_TYPE_TAGS = ("int", "constrained-int", "str", "float", "bool")
_EXPECTED = {
    "model_type": "should be a section",
    "dataclass_type": "should be a section",
    "dict_type": "should be a section",
    "tuple_type": "should be a list",
    "path_type": "should be a path",
}
"""Pydantic's error type -> what we say instead of its words for a Python programmer."""


def _sentence(
    kind: type[BaseModel], error: ValidationError, source: str, overrides: Sequence[str], under: str = ""
) -> str:
    # A required key that is misspelt is both missing and unknown; the second says more.
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda e: e["type"] not in _UNKNOWN)
    inner = _keys(first)
    location = [*filter(None, under.split(".")), *inner]
    key = ".".join(location)
    if first["type"] == "value_error":
        # A combination of values: the file and the overrides may each hold a part of it.
        message = first["msg"].removeprefix("Value error, ")
        return f"{_culprit(source, '', overrides)}: {f'{key}: ' if key else ''}{message}"
    source = _culprit(source, key, overrides)
    if first["type"] in _UNKNOWN:
        section = ".".join(location[:-1])
        where = f'in section "{section}"' if section else "at the top level"
        return f'{source}: unknown key "{key}" {where}{did_you_mean(location[-1], _keys_of(kind, inner[:-1]))}'
    if first["type"] == "missing":
        return f'{source}: the key "{key}" is missing'
    message = _EXPECTED.get(first["type"], first["msg"].removeprefix("Input "))
    literals = [e["msg"] for e in errors if e is not first and e["type"] == "literal_error" and _keys(e) == inner]
    message = " or ".join([message, *(text.removeprefix("Input should be ") for text in literals)])
    given = "a section" if isinstance(first["input"], dict) else json.dumps(first["input"])
    return f"{source}: {key}: {message} (it is {given})"


def _culprit(source: str, key: str, overrides: Sequence[str]) -> str:
    """Where `key` was given: the file, or the command line; both where it is "", for a matter of several keys."""
    if not key:
        return f"{source} with the overrides of the command line" if overrides else source
    given = (override.partition("=")[0] for override in overrides)
    related = any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in given)
    return "the command line" if related else source


def _keys(error: Mapping[str, Any]) -> list[str]:
    """Where an error lies, as keys of ours."""
    return [str(part) for part in error["loc"] if not _is_type_tag(part)]


def _is_type_tag(part: Any) -> bool:
    """Pydantic adds the name of the union member that it tried; such parts are no keys of ours."""
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in _TYPE_TAGS)


def _keys_of(kind: Any, path: Sequence[str]) -> list[str]:
    for part in path:
        kind = _element(kind) if part.isdigit() else _annotations(kind).get(part)
    return list(_annotations(kind))


def _element(kind: Any) -> Any:
    """The type of what a tuple of one type holds, looking through Annotated; None for anything else."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Annotated:
        return _element(arguments[0])
    return arguments[0] if typing.get_origin(kind) is tuple else None


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
    """SafeLoader that refuses a key given twice, which YAML parsers otherwise drop silently, and reads 3e-4 as the
    number that it is in YAML 1.2 (YAML 1.1, which PyYAML follows, takes it for text)."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f'the key "{key}" is given twice', key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_BOOLEAN = "tag:yaml.org,2002:bool"
# YAML 1.1 takes on, off, yes and no for booleans as well; here they are text, and some of them choices.
_StrictLoader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0] != _BOOLEAN]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_BOOLEAN, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
