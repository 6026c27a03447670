"""The record of how a run was trained: its resolved configuration, its sessions, its start."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pico_contract import strict_yaml
from pico_contract.errors import UserError
from pico_contract.renames import RUN

from pico_analyze.sources.base import Source

NOT_COMPARED = (
    "name",
    "runs_dir",
    "data.path",
    "data.stream",
    "seed",
    "observe",
    "checkpoint",
    "disk",
    "evaluate",
    "log",
    "hub",
    "train.micro_batch_size",
    "train.compile",
    "train.activation_checkpointing",
    "train.device",
    "train.sharding",
    "train.threads",
    "train.max_hours",
    "train.stop_margin_minutes",
    "train.timeout_minutes",
)
"""Keys of config.yaml that do not make the run (CONTRACT.md, section 3): how it is carried out, and
its seeds. What a session really used of them (device, precision, threads) is in run.json and is
compared from there."""
_IDENTITY_OF_SESSION = ("precision", "modules")
"""Keys of a session that change what is computed, as the configuration does."""
# Keys that differ in every session.
_NOT_OF_INTEREST = ("started", "from_step", "matmul_rate")
UNKNOWN = object()
"""Stands for a value that a run does not record; None is a value."""


@dataclass(frozen=True)
class RunFacts:
    """The facts that are known of one run.

    Attributes:
        name: of the run.
        sections: top-level keys of its config.yaml; empty if it was not read.
        configuration: dotted key -> value of all that makes the run, except its seeds.
        surroundings: dotted key -> value of its environment: commit, device, packages. Several
            sessions that differ give all their values, in their order.
        seeds: `init`, `data`, `method`; empty if they are not recorded.
        method: name of the training method; empty if it is not recorded.
        parent: the pretrained model that it began from, without a step; None if it began from its
            own seed.
        parameters: their number; None if it is not recorded.
        status: `finished`, `running`, `stopped` or `failed`; empty if it is not recorded.
        step: the newest step that was saved.
        problem: why config.yaml could not be read, in a sentence; empty if it was read or does not
            exist.
    """

    name: str
    sections: frozenset[str] = frozenset()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    surroundings: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    method: str = ""
    parent: str | None = None
    parameters: int | None = None
    status: str = ""
    step: int | None = None
    problem: str = ""

    @property
    def configured(self) -> bool:
        """Whether its config.yaml was read."""
        return bool(self.sections)

    def value(self, key: str) -> Any:
        """Return the value of a dotted key.

        A key that its section of config.yaml lacks is None; a key of no known section is `UNKNOWN`.
        """
        if key in self.configuration:
            return self.configuration[key]
        absent = None if key.partition(".")[0] in self.sections else UNKNOWN
        return self.surroundings.get(key, absent)


def read_facts(run: Source) -> RunFacts:
    """Collect what `run` records; a foreign model records its geometry alone."""
    manifest = getattr(run, "manifest", None)
    geometry = {f"model.{key}": value for key, value in run.model.items()}
    if manifest is None:
        return RunFacts(run.name, configuration=geometry)
    written, problem = _configuration(run)
    # run.json keeps the names of keys that config.yaml has since renamed.
    stated = RUN.current(manifest.data, run.name, "data")
    data = {f"data.{key}": value for key, value in stated.items() if key != "path"}
    # Later ones win: what config.yaml resolved to, if it is readable.
    recorded = {**geometry, "method.name": manifest.method, **data, **dict(_leaves(written))}
    compared = {
        key: value for key, value in recorded.items() if not _is_below(key, NOT_COMPARED)
    }
    sessions = _sessions(getattr(manifest, "sessions", []))
    used = {
        key: value for key, value in sessions.items() if _is_below(key, _IDENTITY_OF_SESSION)
    }
    return RunFacts(
        name=run.name,
        sections=frozenset(map(str, written)),
        configuration=compared | used,
        surroundings={key: value for key, value in sessions.items() if key not in used},
        seeds=dict(manifest.seeds),
        method=str(manifest.method),
        parent=_pretrained(getattr(manifest, "parent", None)),
        parameters=dict(getattr(manifest, "parameters", {})).get("total"),
        status=getattr(manifest, "status", ""),
        step=getattr(manifest, "step", None),
        problem=problem,
    )


def _configuration(run: Source) -> tuple[Mapping[str, Any], str]:
    """Read config.yaml; empty if it does not exist, and with a sentence if it is unreadable."""
    layout = getattr(run, "layout", None)
    if layout is None or not layout.config.is_file():
        return {}, ""
    try:
        return RUN.current(strict_yaml.read_mapping(layout.config), str(layout.config)), ""
    except (OSError, UserError) as error:
        return {}, str(error)


def _leaves(section: Mapping[Any, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything below that is not a mapping."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value


def _sessions(sessions: Any) -> dict[str, Any]:
    """Map each dotted key to the value of all sessions, or to their values in order if several."""
    values: dict[str, list[Any]] = {}
    for session in sessions:
        leaves = _leaves(session) if isinstance(session, Mapping) else ()
        for key, value in leaves:
            if key in _NOT_OF_INTEREST:
                continue
            known = values.setdefault(key, [])
            if value not in known:
                known.append(value)
    return {key: known[0] if len(known) == 1 else tuple(known) for key, known in values.items()}


def _pretrained(parent: str | None) -> str | None:
    """Name the pretrained run or model, whatever its step and however its path is written."""
    if parent is None:
        return None
    path = re.sub(r"@\d+$", "", str(parent))
    run, _, _ = path.replace(os.sep, "/").partition("/checkpoints/step_")
    # One model may be named by a relative path, an absolute one, or a link.
    return os.path.realpath(run)


def _is_below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
