"""An earlier configuration file: whose it is, and what its trainer made of it, defaults
included."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True)
class OldConfig:
    """Dotted keys of one file. `old[key]` is the file's value, else the default of the project that
    it is from."""

    path: Path
    project: str
    given: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.given[key] if key in self.given else PROJECTS[self.project][key]

    @property
    def relora(self) -> bool:
        """Whether low-rank layers were trained."""
        return any(
            key.startswith("model.relora") and value is not None
            for key, value in self.given.items()
        )

    @property
    def maml(self) -> bool:
        """Whether it ran in the trainer of pico-maml-train, with or without episodes."""
        return self.project == "pico-maml-train"

    def refuse(self, key: str, reason: str) -> UserError:
        """The error that names the file and `key`."""
        return UserError(f"{self.path}: {key}: {reason}")


def read_old(path: Path) -> OldConfig:
    """Read an earlier configuration file.

    Raises:
        UserError: not YAML, a key that no earlier project knew (all of them, each with the nearest
            that one did), or a value of another type.
    """
    raw = read_yaml(path)
    project = _project(raw)
    known = PROJECTS[project]
    sections = {
        key.rsplit(".", count)[0] for key in known for count in range(1, key.count(".") + 1)
    }
    given = {
        key: value
        for key, value in leaves(raw)
        if not (key in sections - set(known) and value in (None, {}))
    }
    unread = {
        key
        for key, value in given.items()
        if key in UNREAD and (key not in sections or isinstance(value, str))
    }
    unknown = [key for key in given if key not in known and key not in unread]
    if unknown:
        raise UserError(
            f"{path} (read as {project}): {'; '.join(_stranger(key, known, sections) for key in unknown)}"
        )
    old = OldConfig(path, project, given)
    for key, value in given.items():
        if key in known:
            _check(old, key, value, known[key])
    return old


def _project(raw: Mapping[str, Any]) -> str:
    """Whose file it is, by its shape: only pico-maml-train has `smlmt`, only relora-pico what
    ReLoRA needs."""
    if "smlmt" in raw:
        return "pico-maml-train"
    given = dict(leaves(raw))
    jagged = given.get("training.optimization.lr_scheduler") == JAGGED
    return "relora-pico" if jagged or given.keys() & (RELORA.keys() - PICO.keys()) else "pico-train"


def leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in `raw` that is no mapping with content."""
    for name, value in raw.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _stranger(key: str, known: Mapping[str, Any], sections: set[str]) -> str:
    if key in sections:
        return f'"{key}" should be a section'
    nearest = did_you_mean(key, known).removeprefix("; ").removesuffix("?")
    return f'unknown key "{key}" ({nearest})'


def _check(old: OldConfig, key: str, value: Any, default: Any) -> None:
    if value is None and (default is None or key in NULLABLE):
        return
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list of texts",
    }
    kind = type(default)
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        list: isinstance(value, list) and all(isinstance(item, str) for item in value),
        str: isinstance(value, str)
        or (key == "training.fabric.precision" and isinstance(value, int)),
    }
    if not fits.get(kind, True):
        raise old.refuse(key, f"should be {kinds[kind]} (it is {json.dumps(value, default=str)})")
    least = (
        0 if key in _FROM_ZERO or (old.maml and key == "checkpointing.save_every_n_steps") else 1
    )
    if kind is int and not key.endswith("sequence_idx") and value < least:
        raise old.refuse(key, f"is {value}; it should be at least {least}")
