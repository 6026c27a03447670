"""What is recorded of how a run was trained: its resolved configuration, its sessions, what it
began from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pico_contract import strict_yaml
from pico_contract.errors import UserError

from pico_analyze.sources.base import Source

NOT_COMPARED = (
    *(
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
    ),
    *(
        "hub",
        "train.micro_batch",
        "train.compile",
        "train.activation_checkpointing",
        "train.device",
        "train.sharding",
    ),
    *("train.threads", "train.hours", "train.margin_minutes", "train.timeout_minutes"),
)
"""Keys of config.yaml that say how a run is carried out, not what it is (CONTRACT.md, section 3),
and the seeds. What a session really used of them (device, precision, threads) is in run.json and is
compared from there."""
_IDENTITY_OF_SESSION = ("precision", "modules")
"""Keys of a session that change what is computed, as the configuration does."""
_NOT_OF_INTEREST = ("started", "from_step", "matmul_rate")
UNKNOWN = object()
"""The value of what a run does not record."""


@dataclass(frozen=True)
class RunFacts:
    """What is known of one run.

    Attributes:
        name: of the run.
        sections: top-level keys of its config.yaml; empty where it was not read.
        configuration: dotted key -> value of what makes the run this run; its seeds are not in it.
        surroundings: dotted key -> value of what it ran on: commit, device, packages. Several
            sessions that differ give all their values, in their order.
        seeds: `init`, `data`, `method`; empty where they are not recorded.
        method: name of the training method, empty where it is not recorded.
        parent: the pretrained model that it began from, without a step; None where it began from
            its own seed.
        parameters: their number, None where it is not recorded.
        status: `finished`, `running`, `stopped` or `failed`; empty where it is not recorded.
        step: the newest step that was saved.
        problem: why config.yaml could not be read, in a sentence; empty where it could or is not
            there.
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
        """Return what is recorded under `key`: None if its section of config.yaml lacks it,
        `UNKNOWN` elsewhere."""
        absent = None if key.partition(".")[0] in self.sections else UNKNOWN
        return self.configuration.get(key, self.surroundings.get(key, absent))


def read_facts(run: Source) -> RunFacts:
    """Collect what `run` records; a foreign model records its geometry alone."""
    manifest = getattr(run, "manifest", None)
    geometry = {f"model.{key}": value for key, value in run.model.items()}
    if manifest is None:
        return RunFacts(run.name, configuration=geometry)
    written, problem = _configuration(run)
    data = {f"data.{key}": value for key, value in manifest.data.items() if key != "path"}
    recorded = {**geometry, "method.name": manifest.method, **data, **dict(_leaves(written))}
    sessions = _sessions(getattr(manifest, "sessions", []))
    used = {key: value for key, value in sessions.items() if _is_below(key, _IDENTITY_OF_SESSION)}
    return RunFacts(
        name=run.name,
        sections=frozenset(map(str, written)),
        configuration={
            key: value for key, value in recorded.items() if not _is_below(key, NOT_COMPARED)
        }
        | used,
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
    """Read config.yaml; empty, with a sentence, where it is there but cannot be read."""
    layout = getattr(run, "layout", None)
    if layout is None or not layout.config.is_file():
        return {}, ""
    try:
        return strict_yaml.read_mapping(layout.config), ""
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
    """Map each dotted key to the value that all sessions agree on, or to their values in order."""
    found: dict[str, list[Any]] = {}
    for session in sessions:
        for key, value in _leaves(session) if isinstance(session, Mapping) else ():
            values = found.setdefault(key, [])
            if key not in _NOT_OF_INTEREST and value not in values:
                values.append(value)
    return {
        key: values[0] if len(values) == 1 else tuple(values)
        for key, values in found.items()
        if values
    }


def _pretrained(parent: str | None) -> str | None:
    """Name the pretrained run or model, whichever of its steps it is and however its path is
    written."""
    if parent is None:
        return None
    place = re.sub(r"@\d+$", "", str(parent))
    before, _, _ = place.replace(os.sep, "/").partition("/checkpoints/step_")
    return os.path.realpath(before)


def _is_below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
