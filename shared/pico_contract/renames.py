"""The one table of configuration keys and values that have a new name. The old name stays valid for
ever.

Files, overrides and the config.yaml of old runs may use either. Manifests, the sessions in run.json
and metrics.jsonl are no configuration: their keys and values never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pico_contract.errors import UserError


@dataclass(frozen=True)
class Renames:
    """Old names in one kind of configuration.

    Attributes:
        keys: dotted old key -> dotted key, in the same section.
        values: dotted key -> old value -> value.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def current(self, raw: Mapping[Any, Any], source: str, under: str = "") -> dict[Any, Any]:
        """Copy the section `raw` of `source`, whose dotted key is `under`, with every old name
        replaced.

        Raises:
            UserError: both names of a key are given; names `source` and them.
        """
        renamed: dict[Any, Any] = {}
        for key, value in raw.items():
            old = _dotted(under, key)
            new = self.keys.get(old, old)
            name = key if new == old else new.rpartition(".")[2]
            if name != key and name in raw:
                raise _given_twice(source, old, new)
            is_section = isinstance(value, Mapping)
            renamed[name] = (
                self.current(value, source, new) if is_section else self._value(new, value)
            )
        return renamed

    def current_overrides(self, overrides: Sequence[str]) -> list[str]:
        """Replace the old keys of overrides such as `train.hours=8`; `current` replaces what their
        values hold.

        Raises:
            UserError: both names of a key are given; names them.
        """
        given = {override.partition("=")[0] for override in overrides}
        for old, new in self.keys.items():
            if {old, new} <= given:
                raise _given_twice("the command line", old, new)
        parted = [override.partition("=") for override in overrides]
        return ["".join((self.keys.get(key, key), *rest)) for key, *rest in parted]

    def old_names(self, raw: Mapping[Any, Any], under: str = "") -> Iterator[str]:
        """Yield a sentence for each old name in the section `raw`, whose dotted key is `under`."""
        for key, value in raw.items():
            old = _dotted(under, key)
            new = self.keys.get(old, old)
            if new != old:
                yield f"{old} is now called {new}"
            if isinstance(value, Mapping):
                yield from self.old_names(value, new)
            elif (current := self._value(new, value)) is not value:
                yield f"{new}: {value} is now called {current}"

    def old_keys(self, overrides: Sequence[str]) -> Iterator[str]:
        """Yield a sentence for each override whose key is an old name."""
        for override in overrides:
            key = override.partition("=")[0]
            if key in self.keys:
                yield f"{key} is now called {self.keys[key]}"

    def _value(self, key: str, value: Any) -> Any:
        return self.values.get(key, {}).get(value, value) if isinstance(value, str) else value


RUN = Renames(
    keys={
        "train.micro_batch": "train.micro_batch_size",
        "train.hours": "train.max_hours",
        "train.margin_minutes": "train.stop_margin_minutes",
    },
    values={"data.order": {"shipped": "sequential"}},
)
"""The configuration of a run of pico-train."""

ANALYSIS = Renames(keys={"form_circuits": "dense_circuits"})
"""The configuration of an analysis of pico-analyze."""


def _dotted(under: str, key: Any) -> str:
    # A key that holds a dot itself is no path: "train.hours" at the top level is unknown, whatever
    # is called that.
    own = str(key).replace(".", "\\.")
    return f"{under}.{own}" if under else own


def _given_twice(source: str, old: str, new: str) -> UserError:
    return UserError(
        f"{source}: {old} is the old name of {new}, and both are given: leave out {old}"
    )
