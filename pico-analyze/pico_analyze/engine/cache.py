"""Results kept by content: what was measured of the same bytes by the same code is read, not
computed again.

One file a work item: a header, then one JSON line for each content, which is the sha256 of the
tensors' files of a step (and of the step that it is compared with), with the numbers of each
metric. The step itself is no part of it, but with a permutation null, whose draws depend on it. A
file that is damaged, or of other code, is as none at all; each is replaced as a whole, so that a
kill leaves the old or the new.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

import torch
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.provenance import module_digests

from pico_analyze.components.circuits import UPDATES
from pico_analyze.engine.evaluate import (
    Measurement,
    Numbers,
    Result,
    applicable_metrics,
    cells,
    has_null,
    seeded_by,
)
from pico_analyze.engine.work import Cell, Reference, WorkItem
from pico_analyze.metrics.registry import METRICS, Metric
from pico_analyze.sources.base import Source, model_at

FORMAT, FORMAT_VERSION = "pico-analysis-cache", 1
_CODE = ("components", "engine", "linalg", "metrics", "sources")
"""The rooms of this package that a number depends on."""
_ALONE = "alone"
_LONGEST_NAME = (
    120  # 143 bytes are allowed on eCryptfs, of which the endings and the draft's prefix need some
)

CachedNumbers = dict[str, dict[str, Any]]
"""Content -> metric -> one list of fields for each key of the unit, or None where the metric does
not apply."""


class CacheWarning(UserWarning):
    """A file of the cache could not be used; what it held is computed again."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A source whose results can be kept."""

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """A text that changes whenever a tensor of `kind` at `step` may have; UserError where the
        step has none."""


class ResultCache:
    """Results of one source, below one directory. Those of a source without `fingerprint` are not
    kept."""

    def __init__(self, root: Path, source: Source) -> None:
        self.root = root
        self._can_keep = isinstance(source, Fingerprinted)
        self._contents: dict[tuple[Any, ...], str | None] = {}

    def known(self, work: WorkItem, metrics: Mapping[str, Metric]) -> dict[Cell, Numbers]:
        """What is kept of a work item: place -> those of `metrics` whose numbers there are
        known."""
        if not self._can_keep or not self._path(work).is_file():
            return {}
        kept = self._read(self._path(work))
        found: dict[Cell, Numbers] = {}
        for cell, content, name, key in self._named(work, metrics):
            if key in kept.get(content, {}):
                fields = kept[content][key]
                found.setdefault(cell, {})[name] = fields and [Measurement(*one) for one in fields]
        return found

    def keep(self, work: WorkItem, metrics: Mapping[str, Metric], result: Result) -> None:
        """Add what was measured, but for what rests on a file that could not be read."""
        if not self._can_keep:
            return
        added: CachedNumbers = {}
        for cell, content, name, key in self._named(work, metrics):
            lost = cell.reference is not None and cell.reference.step in result.lost
            if (
                name in result.at.get(cell, {})
                and not lost
                and work.base.get(cell.step) not in result.damages
            ):
                added.setdefault(content, {})[key] = result.at[cell][name]
        if not added:
            return
        path = self._path(work)
        kept = self._read(path) if path.is_file() else {}
        for content, numbers_of in added.items():
            kept.setdefault(content, {}).update(numbers_of)
        lines = "".join(
            json.dumps([content, numbers_of]) + "\n" for content, numbers_of in kept.items()
        )
        codec.write_text(path, json.dumps(_header(lines)) + "\n" + lines)

    def _named(
        self, work: WorkItem, metrics: Mapping[str, Metric]
    ) -> Iterator[tuple[Cell, str, str, str]]:
        """(place, content, metric, what it is called in the file) of each metric that can be
        kept."""
        kept = isinstance(work.other or work.source, Fingerprinted)
        keys = {
            name: _metric_key(name, metric, work)
            for name, metric in applicable_metrics(work, metrics).items()
        }
        for cell, measured in cells(work, metrics):
            own = self._content(work.source, work, cell.step)
            if own is None:
                continue  # the step lacks the unit
            for name, metric in measured.items():
                content = self._compared(own, work, cell, metric, kept)
                if content is not None and (key := keys[name]) is not None:
                    yield cell, content, name, key

    def _compared(
        self, own: str, work: WorkItem, cell: Cell, metric: Metric, kept: bool
    ) -> str | None:
        """The content of a step, with what it is compared with; None where that cannot be told (not
        `kept`)."""
        if metric.arity == 1 and work.kind != UPDATES:
            return own
        base = work.base.get(cell.step)
        reference = Reference(base) if base is not None else cell.reference
        if reference is None:
            return f"{own} {_ALONE}"
        if not kept:
            return None
        content = (
            f"{own} {self._content(work.other or work.source, work, reference.step) or _ALONE}"
        )
        if work.unit.is_of_window:
            inside = [
                self._content(work.source, work, s)
                for s in work.source.steps
                if reference.step < s < cell.step
            ]
            content += f" {_digest(inside)}"
        if reference.shift:
            content += f" {reference.shift} {_digest([key.module for key in work.unit.keys])}"
        return content + (
            f" {_digest(seeded_by(work, *cell))}" if work.draws and has_null(metric) else ""
        )

    def _path(self, work: WorkItem) -> Path:
        unit = work.unit
        parts = (work.kind, work.split, unit.circuit, unit.module)
        return self.root / f"{_file_name(' '.join(part for part in parts if part))}.jsonl"

    def _content(self, source: Source, work: WorkItem, step: int) -> str | None:
        """Of a step of a source; None where it lacks the unit."""
        of = (source is work.source, work.unit.reads(work.kind), work.split, step)
        if of not in self._contents:
            self._contents[of] = _fingerprint(source, *of[1:])
        return self._contents[of]

    def _read(self, path: Path) -> CachedNumbers:
        try:
            header, _, lines = path.read_text(encoding="utf-8").partition("\n")
            found, expected = json.loads(header), _header(lines)
            if found["code"] != expected["code"] or found["format_version"] != FORMAT_VERSION:
                warnings.warn(_of_other_code(self.root), CacheWarning)
                return {}
            if found != expected:
                raise ValueError("its content is not what its first line says")
            return dict(json.loads(line) for line in lines.splitlines())
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"{path} is damaged and left out ({error}): computed again",
                CacheWarning,
                stacklevel=3,
            )
            return {}


def _of_other_code(root: Path) -> str:
    # The file is not named, so that one analysis says this once.
    return f"results in {root} are of another version of pico-analyze or torch: computed again"


def _file_name(text: str) -> str:
    """A text as the name of a file: what is too long for some file system is cut and ends with a
    hash of the whole."""
    name = quote(text, safe=" ")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 17]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _header(lines: str) -> dict[str, Any]:
    sha256 = hashlib.sha256(lines.encode()).hexdigest()
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "code": _code(), "sha256": sha256}


def _fingerprint(source: Source, kinds: Sequence[str], split: str | None, step: int) -> str | None:
    assert isinstance(source, Fingerprinted)
    try:
        found = [
            source.fingerprint(step, kind, None if kind == "weights" else split) for kind in kinds
        ]
    except UserError:
        return None
    return _digest(
        [
            sorted(map(list, model_at(source, step).items())),
            sorted(map(list, source.model.items())),
            found,
        ]
    )


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of, default=str).encode()).hexdigest()[:32]


@lru_cache(1)
def _code() -> str:
    """The version of this package and of torch, and the bytes of what computes.

    Raises:
        RuntimeError: a room has no files, so that this code would hash nothing and results of any
            code would match.
    """
    root = Path(__file__).parents[1]
    hashes = []
    for room in _CODE:
        files = sorted((root / room).glob("*.py"))
        if not files:
            raise RuntimeError(
                f"{root / room} has no Python files: results cannot be kept by the code that computed them"
            )
        hashes += [codec.sha256_file(path) for path in files]
    return _digest([version("pico-analyze"), torch.__version__, hashes])


def _metric_key(name: str, metric: Metric, work: WorkItem) -> str | None:
    """The metric and its parameters, a user's own with the file that defines it; None where that
    cannot be told."""
    parameters = metric.variant
    if work.draws and has_null(metric):
        parameters += f" permutation {work.draws}"
    if work.dense_circuits and metric.needs == "entries" and work.unit.circuit:
        parameters += " formed"  # without, the same metric does not apply
    if METRICS.get(name) == metric:
        return f"{name} {parameters}"
    source = _file_of(metric.fn)
    return None if source is None else f"{name} {parameters} {source}"


def _file_of(fn: Callable[..., Any]) -> str | None:
    """Digest of the source of a function's module and of what that imports from its folder.

    None for closures, cells of a notebook and objects, whose code is not in a file alone.
    """
    module = inspect.getmodule(fn)
    if (
        module is None
        or not inspect.isfunction(fn)
        or getattr(module, fn.__qualname__, None) is not fn
    ):
        return None
    found = module_digests([module.__name__])
    return _digest(found) if found else None


def pending_parts(
    work: WorkItem, metrics: Mapping[str, Metric], known: Mapping[Cell, Numbers]
) -> list[tuple[WorkItem, dict[str, Metric]]]:
    """What is still to be measured of a work item: steps that lack the same metrics go together,
    each with those references to which something is lacking. A step without a pair goes with those
    that have some.
    """
    alone: dict[int, dict[str, None]] = {}
    pairs: dict[int, dict[str, None]] = {}
    references: dict[int, tuple[Reference | None, ...]] = {}
    for cell, measured in cells(work, metrics):
        names = dict.fromkeys(name for name in measured if name not in known.get(cell, {}))
        paired = dict.fromkeys(name for name in names if metrics[name].arity == 2)
        alone.setdefault(cell.step, {}).update((name, None) for name in names if name not in paired)
        pairs.setdefault(cell.step, {}).update(paired)
        if paired:
            references[cell.step] = (*references.get(cell.step, ()), cell.reference)
    with_pairs = {tuple(alone[step]): tuple(names) for step, names in pairs.items() if names}
    groups: dict[tuple[str, ...], list[int]] = {}
    for step, names in alone.items():
        key = (*names, *(pairs[step] or with_pairs.get(tuple(names), ())))
        if names or pairs[step]:
            groups.setdefault(key, []).append(step)
    return [
        (
            replace(work, steps=tuple(steps), references=references),
            {name: metrics[name] for name in names},
        )
        for names, steps in groups.items()
    ]


def merge_numbers(parts: Sequence[Mapping[Cell, Numbers]]) -> dict[Cell, Numbers]:
    """The numbers of several measurements of one work item, by place."""
    at: dict[Cell, Numbers] = {}
    for part in parts:
        for cell, numbers in part.items():
            at.setdefault(cell, {}).update(numbers)
    return at
