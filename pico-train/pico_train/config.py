"""Load strict configurations: defaults < YAML file < dotted overrides. Each room declares its keys.

An unknown key, at any depth, is an error that names the nearest known one: most unknown keys are
typos, and training with a default in their place wastes the run.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pico_contract import strict_yaml
from pico_contract.config_errors import describe
from pico_contract.config_types import read_booleans
from pico_contract.errors import UserError, did_you_mean
from pico_contract.overrides import apply_overrides, origin
from pico_contract.renames import Renames
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
    renames: ClassVar[Renames] = Renames()
    """Old names of keys and values, where this is a whole configuration."""

    @classmethod
    def completed(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fill in keys that follow from others, before `raw` is checked; by default none."""
        return raw


class OperationMark:
    """Mark of a field that may change between sessions of a run, since it is not its identity."""


T = TypeVar("T")
Operation = Annotated[T, OperationMark()]
S = TypeVar("S", bound=Section)


def load(kind: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Read the YAML file `path` (None: empty), apply `overrides`, and check the result.

    An override is a dotted key with a value, such as `train.steps=100`.

    Raises:
        UserError: the file is missing or not YAML, or keys are unknown or given twice, or values
            are of a wrong type or impossible; names file (or override) and key of each.
    """
    source = str(path) if path is not None else "the command line"
    written = read_yaml(path) if path is not None else {}
    old_names = [*kind.renames.old_names(written), *kind.renames.old_keys(overrides)]
    # An override of one name takes the place of a key of the other name in the file.
    raw, overrides = (
        kind.renames.current(written, source),
        kind.renames.current_overrides(overrides),
    )
    apply_overrides(raw, overrides)
    old_names += kind.renames.old_names(raw)  # in sections and values of overrides
    if old_names:
        note("; ".join(dict.fromkeys(old_names)))
    return validate(kind, raw, source, overrides)


@cache
def note(sentence: str) -> None:
    """Log `sentence` once a process; without another handler it is a line on stderr."""
    logging.getLogger(__name__).warning("note: %s", sentence)


def validate(
    kind: type[S],
    raw: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    under: str = "",
) -> S:
    """Check `raw`, which is the section `under` of a configuration, against `kind`.

    A UserError names `source` and every key at fault.

    Checked as JSON in strict mode: text is not a number, true is not a number, and 10.0 is not an
    integer, while a list serves as a tuple and text as a path. Old names of keys and values are
    accepted.
    """
    raw = kind.renames.current(raw, source)
    infinite = [
        _infinite(keys, value) for keys, value in _leaves(raw, ()) if _is_infinite(value)
    ]
    errors: list[Mapping[str, Any]] = list(infinite)
    try:
        text = json.dumps(read_booleans(kind, kind.completed(raw)), default=str)
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
    """Return an error like pydantic's, which does not look into mappings of options."""
    return {"type": "finite_number", "loc": keys, "msg": "", "input": value}


def _follows(location: tuple[str | int, ...], infinite: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether an error lies at a number that is not finite, or at a section that has one."""
    return any(error["loc"][: len(location)] == location for error in infinite)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; UserError if it has none, see `strict_yaml`."""
    try:
        return strict_yaml.read_mapping(path)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(
            f"there is no configuration file {path}{did_you_mean(path.name, siblings)}"
        ) from None


def to_yaml(config: Section) -> str:
    """Write the resolved configuration as YAML, which loads as an equal one."""
    return strict_yaml.dump(config.model_dump(mode="json"))


def identity(config: Section) -> dict[str, Any]:
    """Return the identity of a run: dotted key -> value of every field not marked as operation."""
    values: dict[str, Any] = {}
    _collect_identity(config, "", values)
    return values


def _collect_identity(section: Any, prefix: str, values: dict[str, Any]) -> None:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        # Whole sections may be operation, with everything below them.
        if any(isinstance(mark, OperationMark) for mark in info.metadata):
            continue
        if isinstance(value, Section):
            _collect_identity(value, f"{prefix}{name}.", values)
        elif is_dataclass(value):
            values.update(
                {f"{prefix}{name}.{f.name}": getattr(value, f.name) for f in fields(value)}
            )
        else:  # as JSON has it, so that it equals a value read back from config.yaml
            values[f"{prefix}{name}"] = TypeAdapter(Any).dump_python(value, mode="json")


def _leaves(
    raw: Any, keys: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield (keys, value) of everything in `raw` that is neither mapping nor list."""
    if isinstance(raw, Mapping | list | tuple):
        for name, value in raw.items() if isinstance(raw, Mapping) else enumerate(raw):
            yield from _leaves(value, (*keys, name))
    else:
        yield keys, raw
