"""An earlier configuration file, read with the keys and defaults of its project."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pico_contract.errors import UserError, did_you_mean

from pico_train.config import read_yaml
from pico_train.legacy.keys import NULLABLE, PICO, PROJECTS, RELORA, UNREAD

JAGGED = "relora_jagged_cosine"

_FROM_ZERO = {
    "training.optimization.lr_warmup_steps",
    "training.optimization.restart_warmup_steps",
    "smlmt.min_token_freq",
    "smlmt.inner_steps",
}
"""Whole numbers that may be 0; `sequence_idx` may be negative, the others are at least 1."""
_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list of texts",
}
"""Type of a default -> the words for it in messages."""


@dataclass(frozen=True)
class OldConfig:
    """The dotted keys of one file; `old[key]` is its value, or else the default of its project."""

    path: Path
    project: str
    given: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.given[key] if key in self.given else PROJECTS[self.project][key]

    @property
    def relora(self) -> bool:
        """Whether the run trained low-rank layers."""
        keys = [key for key, value in self.given.items() if value is not None]
        return any(key.startswith("model.relora") for key in keys)

    @property
    def maml(self) -> bool:
        """Whether the run used the trainer of pico-maml-train, with or without episodes."""
        return self.project == "pico-maml-train"

    def refuse(self, key: str, reason: str) -> UserError:
        """Make the error that names the file and `key`; the caller raises it."""
        return UserError(f"{self.path}: {key}: {reason}")


def read_old(path: Path) -> OldConfig:
    """Read an earlier configuration file.

    Raises:
        UserError: the file is not YAML, a value has another type, or keys are unknown; the message
            names all of them, each with the nearest known key.
    """
    raw = read_yaml(path)
    project = _project(raw)
    known = PROJECTS[project]
    sections = _sections(known)
    given = {}
    for key, value in leaves(raw):
        # `section:` with nothing below it is null in YAML, and no unknown key.
        is_empty_section = key in sections and key not in known and value in (None, {})
        if not is_empty_section:
            given[key] = value
    problems = []
    for key, value in given.items():
        # One of the unread keys is also the name of a section, for which its files gave a text.
        is_unread = key in UNREAD and (key not in sections or isinstance(value, str))
        if key not in known and not is_unread:
            problems.append(_explain_unknown(key, known, sections))
    if problems:
        raise UserError(f"{path} (read as {project}): {'; '.join(problems)}")
    old = OldConfig(path, project, given)
    for key, value in given.items():
        if key in known:
            _check(old, key, value, known[key])
    return old


def _sections(keys: Iterable[str]) -> set[str]:
    """Collect the dotted names of all sections that hold `keys`."""
    sections = set()
    for key in keys:
        while "." in key:
            key = key.rpartition(".")[0]
            sections.add(key)
    return sections


def _project(raw: Mapping[str, Any]) -> str:
    """Tell a file's project: only pico-maml-train has `smlmt`, only relora-pico keys of ReLoRA."""
    if "smlmt" in raw:
        return "pico-maml-train"
    given = dict(leaves(raw))
    is_jagged = given.get("training.optimization.lr_scheduler") == JAGGED
    only_in_relora = RELORA.keys() - PICO.keys()
    return "relora-pico" if is_jagged or given.keys() & only_in_relora else "pico-train"


def leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over (dotted key, value) of all values that are not mappings, or are empty ones."""
    for name, value in raw.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _explain_unknown(key: str, known: Mapping[str, Any], sections: set[str]) -> str:
    if key in sections:
        return f'"{key}" should be a section'
    nearest = did_you_mean(key, known).removeprefix("; ").removesuffix("?")
    return f'unknown key "{key}" ({nearest})'


def _check(old: OldConfig, key: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than the project's default, or a number that is too small."""
    if value is None and (default is None or key in NULLABLE):
        return
    wanted = type(default)
    # Fabric takes `precision: 32` as well as "32".
    is_precision = key == "training.fabric.precision" and isinstance(value, int)
    if wanted in _TYPES and not _has_type(value, wanted) and not is_precision:
        shown = json.dumps(value, default=str)
        raise old.refuse(key, f"should be {_TYPES[wanted]} (it is {shown})")
    if wanted is not int or key.endswith("sequence_idx"):
        return
    may_be_zero = old.maml and key == "checkpointing.save_every_n_steps"
    least = 0 if key in _FROM_ZERO or may_be_zero else 1
    if value < least:
        raise old.refuse(key, f"is {value}; it should be at least {least}")


def _has_type(value: Any, wanted: type) -> bool:
    if wanted is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    # In Python a bool is an int, and in YAML a float may be written as a whole number.
    if isinstance(value, bool) and wanted is not bool:
        return False
    return isinstance(value, (int, float) if wanted is float else wanted)
