"""Results kept by content: what was measured of the same bytes by the same code is read, not computed again.

One file a work item: a header, then one JSON line for each content, which is the sha256 of the tensors' files of a step
(and of the step that it is compared with), with the numbers of each metric. The step itself is no part of it. A file
that is damaged, or of other code, is as none at all; each is replaced as a whole, so that a kill leaves the old or the
new.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

import torch
from pico_contract import codec
from pico_contract.errors import UserError

import pico_analyze
from pico_analyze.components import UPDATES
from pico_analyze.item import Measured, Numbers, Result, chosen_for
from pico_analyze.metrics import METRICS, Metric
from pico_analyze.reading import Work
from pico_analyze.sources import Source

FORMAT, FORMAT_VERSION = "pico-analysis-cache", 1
_CODE = ("components", "decompositions", "item", "linalg", "metrics", "power_law", "reading", "sources")
"""What a number depends on: modules and packages of this package."""
_ALONE = "alone"

Kept = dict[str, dict[str, Any]]
"""Content -> metric -> one list of fields for each key of the unit, or None where the metric does not apply."""


class CacheWarning(UserWarning):
    """A file of the cache could not be used; what it held is computed again."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A source whose results can be kept."""

    def fingerprint(self, step: int, kind: str, split: str | None = None) -> str:
        """A text that changes whenever a tensor of `kind` at `step` may have; UserError where the step has none."""


class Cache:
    """Results of one source, below one directory. Those of a source without `fingerprint` are not kept."""

    def __init__(self, root: Path, source: Source) -> None:
        self.root = root
        self._source = source if isinstance(source, Fingerprinted) else None
        self._model = sorted(map(list, source.model.items()))
        self._contents: dict[tuple[Any, ...], str | None] = {}

    def known(self, work: Work, metrics: Mapping[str, Metric]) -> dict[int, Numbers]:
        """What is kept of a work item: step -> those of `metrics` whose numbers there are known."""
        if self._source is None or not self._path(work).is_file():
            return {}
        kept, places = self._read(self._path(work)), _places(work, metrics)
        found: dict[int, Numbers] = {}
        for step in work.steps:
            contents = self._contents_at(work, step)
            for name, key, content in ((name, key, contents[compared]) for name, key, compared in places):
                if content is not None and key in kept.get(content, {}):
                    fields = kept[content][key]
                    found.setdefault(step, {})[name] = fields and [Measured(*one) for one in fields]
        return found

    def keep(self, work: Work, metrics: Mapping[str, Metric], result: Result) -> None:
        """Add what was measured, but for what rests on a file that could not be read."""
        if self._source is None:
            return
        added: Kept = {}
        places = _places(work, metrics)
        for step, numbers in result.at.items():
            contents = self._contents_at(work, step)
            for name, key, compared in places:
                content = contents[compared]
                if content is not None and name in numbers and work.base.get(step) not in result.damages:
                    added.setdefault(content, {})[key] = numbers[name]
        if not added:
            return
        path = self._path(work)
        kept = self._read(path) if path.is_file() else {}
        for content, numbers_of in added.items():
            kept.setdefault(content, {}).update(numbers_of)
        lines = "".join(json.dumps([content, numbers_of]) + "\n" for content, numbers_of in kept.items())
        codec.write_text(path, json.dumps(_header(lines)) + "\n" + lines)

    def _path(self, work: Work) -> Path:
        unit = work.unit
        parts = (work.kind, work.split, unit.circuit, unit.module)
        return self.root / (quote(" ".join(part for part in parts if part), safe=" ") + ".jsonl")

    def _contents_at(self, work: Work, step: int) -> tuple[str | None, str | None]:
        """The content of a step, by itself and with what it is compared with; None where the step lacks the unit."""
        own = self._content(work, step)
        if own is None:
            return None, None
        base = work.base.get(step)
        return own, f"{own} {(None if base is None else self._content(work, base)) or _ALONE}"

    def _content(self, work: Work, step: int) -> str | None:
        of = (work.unit.reads(work.kind), work.split, step)
        if of not in self._contents:
            self._contents[of] = self._fingerprint(*of)
        return self._contents[of]

    def _fingerprint(self, kinds: Sequence[str], split: str | None, step: int) -> str | None:
        assert self._source is not None
        try:
            found = [self._source.fingerprint(step, kind, None if kind == "weights" else split) for kind in kinds]
        except UserError:
            return None
        return _digest([self._model, found])

    def _read(self, path: Path) -> Kept:
        try:
            header, _, lines = path.read_text(encoding="utf-8").partition("\n")
            found, expected = json.loads(header), _header(lines)
            if found["code"] != expected["code"] or found["format_version"] != FORMAT_VERSION:
                return {}
            if found != expected:
                raise ValueError("its content is not what its first line says")
            return dict(json.loads(line) for line in lines.splitlines())
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{path} is damaged and left out ({error}): computed again", CacheWarning, stacklevel=3)
            return {}


def _header(lines: str) -> dict[str, Any]:
    sha256 = hashlib.sha256(lines.encode()).hexdigest()
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "code": _code(), "sha256": sha256}


def _places(work: Work, metrics: Mapping[str, Metric]) -> list[tuple[str, str, bool]]:
    """(metric, what it is called in the file, whether it compares) of each metric whose numbers can be kept."""
    places = []
    for name, metric in chosen_for(work.kind, metrics).items():
        key = _metric_key(name, metric)
        if key is not None:
            places.append((name, key, metric.arity == 2 or work.kind == UPDATES))
    return places


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of, default=str).encode()).hexdigest()[:32]


@lru_cache(1)
def _code() -> str:
    """The version of this package and of torch, and the bytes of what computes."""
    root = Path(__file__).parent
    files = [path for name in _CODE for path in (root / f"{name}.py", *sorted((root / name).glob("*.py")))]
    held = [codec.sha256_file(path) for path in files if path.is_file()]
    return _digest([pico_analyze.__version__, torch.__version__, held])


def _metric_key(name: str, metric: Metric) -> str | None:
    """The metric and its parameters, a user's own with the file that defines it; None where that cannot be told."""
    parameters = json.dumps(dict(metric.parameters), sort_keys=True)
    if METRICS.get(name) == metric:
        return f"{name} {parameters}"
    source = _file_of(metric.fn)
    return None if source is None else f"{name} {parameters} {source}"


def _file_of(fn: Callable[..., Any]) -> str | None:
    """sha256 of the file of a function that is its module's; None for closures, cells of a notebook and objects."""
    module = inspect.getmodule(fn)
    if module is None or not inspect.isfunction(fn) or getattr(module, fn.__qualname__, None) is not fn:
        return None
    file = Path(getattr(module, "__file__", None) or "")
    return codec.sha256_file(file) if file.is_file() else None


def pending(
    work: Work, metrics: Mapping[str, Metric], known: Mapping[int, Numbers]
) -> list[tuple[tuple[int, ...], dict[str, Metric]]]:
    """(steps, metrics) that are still to be measured; steps that lack the same metrics go together."""
    chosen = chosen_for(work.kind, metrics)
    groups: dict[tuple[str, ...], list[int]] = {}
    for step in work.steps:
        lacking = tuple(name for name in chosen if name not in known.get(step, {}))
        if lacking:
            groups.setdefault(lacking, []).append(step)
    return [(tuple(steps), {name: chosen[name] for name in names}) for names, steps in groups.items()]


def merged(parts: Sequence[Mapping[int, Numbers]]) -> dict[int, Numbers]:
    """The numbers of several measurements of one work item, by step."""
    at: dict[int, Numbers] = {}
    for part in parts:
        for step, numbers in part.items():
            at.setdefault(step, {}).update(numbers)
    return at
