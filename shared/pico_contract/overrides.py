"""Overrides of a configuration on the command line: dotted keys with YAML values, such as
train.steps=100."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pico_contract import strict_yaml
from pico_contract.errors import UserError, shorten


def apply_overrides(
    raw: dict[str, Any], overrides: Sequence[str], example: str = "train.steps=100"
) -> None:
    """Set in `raw` what `overrides` say, each `key=value`; the last of several with one key wins.

    Raises:
        UserError: no key, no value, a value that is not YAML, or a key below a value; names the
            override.
    """
    for override in overrides:
        _apply(raw, override, example)


def _apply(raw: dict[str, Any], override: str, example: str) -> None:
    key, equals, text = override.partition("=")
    shown = shorten(override)
    parts = key.split(".")
    if not equals or not all(parts):
        raise UserError(f'"{shown}" is not an override: write key=value, for example {example}')
    if len(parts) > strict_yaml.MAX_DEPTH or not key.isprintable():
        raise UserError(f'"{shown}" is not an override: no key is called that')
    value = strict_yaml.parse(text, f'the value of the override "{shown}"')
    section = raw
    for part in parts[:-1]:
        # `section:` with nothing after it is null in YAML, and as good as absent.
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            below = f'goes below "{shorten(part)}", which is a value and not a section'
            raise UserError(f'the override "{shown}" {below}')
    section[parts[-1]] = value


def origin(source: str, key: str, overrides: Sequence[str]) -> str:
    """Name where `key` was given: `source`, or the command line; both for "", which stands for
    several keys."""
    if not key:
        return f"{source} with the overrides of the command line" if overrides else source
    names = [override.partition("=")[0] for override in overrides]
    related = any(
        f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in names
    )
    return "the command line" if related else source
