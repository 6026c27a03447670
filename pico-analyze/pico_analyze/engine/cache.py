"""A cache of results by content: the same code never measures the same bytes twice.

Each work item has one file: a header, then one JSON line for each content with the numbers of each
metric. A content is the sha256 of the tensors' files of a step, and of the step that it is compared
with. The step itself is not part of it, except with a permutation null, whose draws depend on it.

A file that is damaged or comes from other code is ignored. Files are replaced as a whole, so that a
kill leaves the old file or the new one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
"""Part of a content: there is nothing to compare with."""
# eCryptfs allows 143 bytes, of which endings and the prefix of drafts need some.
_LONGEST_NAME = 120

CachedNumbers = dict[str, dict[str, Any]]
"""Content -> metric -> the fields of each `Measurement`, or None if the metric does not apply."""


class CacheWarning(UserWarning):
    """A warning that a file of the cache is not usable; its results are computed again."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A source whose results can be cached."""

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """Identify the tensors of `kind` at `step` by a text; UserError if the step has none.

        The text changes whenever one of the tensors may have changed.
        """


class ResultCache:
    """Results of one source below one directory; nothing is cached without `fingerprint`."""

    def __init__(self, root: Path, source: Source) -> None:
        self.root = root
        self._can_keep = isinstance(source, Fingerprinted)
        self._contents: dict[tuple[Any, ...], str | None] = {}

    def known(self, work: WorkItem, metrics: Mapping[str, Metric]) -> dict[Cell, Numbers]:
        """Read the cached numbers of a work item: place -> metric -> numbers."""
        path = self._path(work)
        if not self._can_keep or not path.is_file():
            return {}
        stored = self._read(path)
        known: dict[Cell, Numbers] = {}
        for cell, content, name, key in self._named(work, metrics):
            by_key = stored.get(content, {})
            if key in by_key:
                known.setdefault(cell, {})[name] = _numbers(by_key[key])
        return known

    def keep(self, work: WorkItem, metrics: Mapping[str, Metric], result: Result) -> None:
        """Add the numbers of a result, except those for which a file could not be read.

        Those would be found again once the file is repaired, since contents are those of intact
        files.
        """
        if not self._can_keep:
            return
        added: CachedNumbers = {}
        for cell, content, name, key in self._named(work, metrics):
            numbers = result.at.get(cell, {})
            if name not in numbers or _rests_on_damage(work, cell, result):
                continue
            added.setdefault(content, {})[key] = numbers[name]
        if not added:
            return
        path = self._path(work)
        stored = self._read(path) if path.is_file() else {}
        for content, by_key in added.items():
            stored.setdefault(content, {}).update(by_key)
        lines = "".join(f"{json.dumps(list(line))}\n" for line in stored.items())
        codec.write_text(path, json.dumps(_header(lines)) + "\n" + lines)

    def _named(
        self, work: WorkItem, metrics: Mapping[str, Metric]
    ) -> Iterator[tuple[Cell, str, str, str]]:
        """Yield (place, content, metric, key in the file) of each number that can be cached."""
        chosen = applicable_metrics(work, metrics)
        keys = {name: _metric_key(name, metric, work) for name, metric in chosen.items()}
        identifies_references = isinstance(work.other or work.source, Fingerprinted)
        for cell, measured in cells(work, metrics):
            own_content = self._content(work.source, work, cell.step)
            if own_content is None:
                continue  # the step lacks the unit
            for name, metric in measured.items():
                content = self._compared(own_content, work, cell, metric, identifies_references)
                key = keys[name]
                if content is not None and key is not None:
                    yield cell, content, name, key

    def _compared(
        self, own: str, work: WorkItem, cell: Cell, metric: Metric, identifies_references: bool
    ) -> str | None:
        """Extend the content of a step by all else that a number depends on.

        None if that is unknown, since the source of the reference has no fingerprints.
        """
        if metric.arity == 1 and work.kind != UPDATES:
            return own
        # The start of a window is part of an update as a reference is of a similarity.
        base = work.base.get(cell.step)
        reference = Reference(base) if base is not None else cell.reference
        if reference is None:
            return f"{own} {_ALONE}"
        if not identifies_references:
            return None
        other = work.other or work.source
        content = f"{own} {self._content(other, work, reference.step) or _ALONE}"
        if work.unit.is_of_window:
            # Restarts within the window count too.
            inside = [step for step in work.source.steps if reference.step < step < cell.step]
            contents = [self._content(work.source, work, step) for step in inside]
            content += f" {_digest(contents)}"
        if reference.shift:
            # The file is that of all layers, so the content says which ones were compared.
            modules = [key.module for key in work.unit.keys]
            content += f" {reference.shift} {_digest(modules)}"
        if work.draws and has_null(metric):
            content += f" {_digest(seeded_by(work, *cell))}"
        return content

    def _path(self, work: WorkItem) -> Path:
        unit = work.unit
        parts = (work.kind, work.split, unit.circuit, unit.module)
        name = _file_name(" ".join(part for part in parts if part))
        return self.root / f"{name}.jsonl"

    def _content(self, source: Source, work: WorkItem, step: int) -> str | None:
        """Hash the files of a step that the unit is read from; None if the step lacks the unit."""
        kinds = work.unit.reads(work.kind)
        about = (source is work.source, kinds, work.split, step)
        # Fingerprints read manifests, and every metric of a step asks for the same one.
        if about not in self._contents:
            self._contents[about] = _fingerprint(source, kinds, work.split, step)
        return self._contents[about]

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


def _numbers(fields: list[list[Any]] | None) -> list[Measurement] | None:
    if fields is None:
        return None
    return [Measurement(*values) for values in fields]


def _rests_on_damage(work: WorkItem, cell: Cell, result: Result) -> bool:
    """Whether the reference of a place, or the start of its window, was not readable."""
    if cell.reference is not None and cell.reference.step in result.lost:
        return True
    return work.base.get(cell.step) in result.damages


def _of_other_code(root: Path) -> str:
    # The file is not named, so that one analysis says this once.
    return f"results in {root} are of another version of pico-analyze or torch: computed again"


def _file_name(text: str) -> str:
    """Make a text the name of a file; a long one is cut and ends with a hash of the whole."""
    name = quote(text, safe=" ")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 17]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _header(lines: str) -> dict[str, Any]:
    sha256 = hashlib.sha256(lines.encode()).hexdigest()
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "code": _code(),
        "sha256": sha256,
    }


def _fingerprint(
    source: Source, kinds: Sequence[str], split: str | None, step: int
) -> str | None:
    assert isinstance(source, Fingerprinted)
    try:
        fingerprints = [
            source.fingerprint(step, kind, None if kind == "weights" else split)
            for kind in kinds
        ]
    except UserError:
        return None
    # Circuits depend on the number of heads, at the step and in the source as a whole.
    geometry = sorted(map(list, model_at(source, step).items()))
    usual_geometry = sorted(map(list, source.model.items()))
    return _digest([geometry, usual_geometry, fingerprints])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:32]


@lru_cache(1)
def _code() -> str:
    """Hash the versions of this package and of torch, and the files of the rooms that compute.

    Raises:
        RuntimeError: a room has no files. Without them, results of any code would match.
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
    """Name a metric with its parameters, a user's own with the digest of its file.

    None if no file defines it: then its results cannot be cached.
    """
    parameters = metric.variant
    if work.draws and has_null(metric):
        parameters += f" permutation {work.draws}"
    if work.dense_circuits and metric.needs == "entries" and work.unit.circuit:
        parameters += " formed"  # the same metric does not apply to circuits otherwise
    if METRICS.get(name) == metric:
        return f"{name} {parameters}"
    source = _file_of(metric.fn)
    return None if source is None else f"{name} {parameters} {source}"


def _file_of(fn: Callable[..., Any]) -> str | None:
    """Hash the module of a function and all that it imports from its folder.

    None for closures, cells of a notebook and objects, whose code is not in a file alone.
    """
    module = inspect.getmodule(fn)
    if module is None or not inspect.isfunction(fn):
        return None
    # A closure or a decorated function is not what its module defines by this name.
    if getattr(module, fn.__qualname__, None) is not fn:
        return None
    digests = module_digests([module.__name__])
    return _digest(digests) if digests else None


def pending_parts(
    work: WorkItem, metrics: Mapping[str, Metric], known: Mapping[Cell, Numbers]
) -> list[tuple[WorkItem, dict[str, Metric]]]:
    """Split a work item into parts that are still to be measured, each with the same metrics.

    A part has the references for which something is lacking, and no others.
    """
    lacking = _lacking(work, metrics, known)
    # A step without pairs joins the steps that lack the same metrics and have pairs.
    pairs_beside = {step.alone: step.pairs for step in lacking.values() if step.pairs}
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, step in lacking.items():
        if step.alone or step.pairs:
            pairs = step.pairs or pairs_beside.get(step.alone, ())
            groups.setdefault((*step.alone, *pairs), []).append(number)
    references = {}
    for number, step in lacking.items():
        if step.references:
            references[number] = tuple(step.references)
    parts = []
    for names, steps in groups.items():
        part = replace(work, steps=tuple(steps), references=references)
        lacking_metrics = {name: metrics[name] for name in names}
        parts.append((part, lacking_metrics))
    return parts


@dataclass
class _LackingAtStep:
    """The metrics that a step lacks, of itself and of pairs, and the references of those pairs."""

    alone: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    references: list[Reference | None] = field(default_factory=list)


def _lacking(
    work: WorkItem, metrics: Mapping[str, Metric], known: Mapping[Cell, Numbers]
) -> dict[int, _LackingAtStep]:
    """Map each step of a work item to what it lacks, over all its references together."""
    lacking: dict[int, _LackingAtStep] = {}
    for cell, measured in cells(work, metrics):
        step = lacking.setdefault(cell.step, _LackingAtStep())
        names = [name for name in measured if name not in known.get(cell, {})]
        pairs = [name for name in names if metrics[name].arity == 2]
        alone = [name for name in names if metrics[name].arity == 1]
        step.alone = _union(step.alone, alone)
        step.pairs = _union(step.pairs, pairs)
        if pairs:
            step.references.append(cell.reference)
    return lacking


def _union(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*names, *others)))


def merge_numbers(parts: Sequence[Mapping[Cell, Numbers]]) -> dict[Cell, Numbers]:
    """Join the numbers of several measurements of one work item by place."""
    at: dict[Cell, Numbers] = {}
    for part in parts:
        for cell, numbers in part.items():
            at.setdefault(cell, {}).update(numbers)
    return at
