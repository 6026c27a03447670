"""Audit of the files that no directory's manifest lists: those that run.json records, and those
that nothing does."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from pico_contract import codec
from pico_contract.files import MISSING, irregular
from pico_contract.layout import RunLayout, is_leftover

from pico_analyze.audit.findings import Audit, AuditedRun

_FEW = 3
"""Files of one directory that are named one by one."""


def check_inputs(run: AuditedRun, result: Audit) -> None:
    """Compare config.yaml and probe.safetensors with the digests in run.json."""
    layout = run.layout
    for path in (layout.config, layout.probe):
        digest = run.manifest.digests.get(path.name)
        problem = irregular(path)
        if problem == MISSING and digest is None and path != layout.config:
            continue  # of a run that has no probe
        if problem is not None:
            result.add("missing" if problem == MISSING else "damage", path, problem)
        elif digest is None:
            result.uncovered[path] = "run.json records no digest of it"
        elif run.hashes and codec.sha256_file(path) != digest:
            result.add(
                "damage",
                path,
                "does not have the sha256 that run.json says: it was edited or damaged",
            )
        else:
            result.compared.add(path)


def check_rest(run: AuditedRun, result: Audit) -> None:
    """Name every other file of the run as not covered, and report links, which no reader
    follows."""
    at_fault = {finding.path for finding in result.findings}
    rest: dict[Path, list[Path]] = defaultdict(list)
    for path in _files(run.layout.root):
        if path.is_symlink():
            result.add(
                "damage",
                path,
                "is a link, and links are not followed: put a copy of the file in its place",
            )
        elif path not in result.compared and path not in result.uncovered and path not in at_fault:
            rest[_group(run.layout, path)].append(path)
    for group, paths in rest.items():
        if len(paths) <= _FEW and group not in (run.layout.logs, _analyses(run.layout)):
            result.uncovered.update((path, _reason(run.layout, path)) for path in paths)
        else:
            number = f"{len(paths)} file{'s' if len(paths) > 1 else ''}"
            result.uncovered[group] = f"{number}, {_reason(run.layout, paths[0])}"


def _files(root: Path) -> list[Path]:
    """Every file and every link below `root`, where the directories of a run may be links
    themselves."""
    found = []
    tops = [path for path in root.iterdir() if path.is_dir()]
    for top in [root, *tops]:
        for folder, directories, names in os.walk(top):
            if top == root:
                directories.clear()
            linked = [name for name in directories if (Path(folder) / name).is_symlink()]
            found += [Path(folder) / name for name in (*names, *linked)]
    return sorted(found)


def _analyses(layout: RunLayout) -> Path:
    return layout.analysis("any").root.parent


def _group(layout: RunLayout, path: Path) -> Path:
    """The directory under which a file is named: one of the run's own, or the one that it lies
    in."""
    parts = path.relative_to(layout.root).parts
    top = layout.root / parts[0]
    return top if top in (layout.logs, _analyses(layout)) else path.parent


def _reason(layout: RunLayout, path: Path) -> str:
    if any(is_leftover(part) for part in (path, *path.parents)):
        return "left by an interrupted write"
    if path.is_relative_to(_analyses(layout)):
        return "derived from the rest"
    if path.is_relative_to(layout.logs):
        return "whose digests nothing records"
    if path == layout.lock:
        return "which changes while the run is written"
    return "which no manifest lists"
