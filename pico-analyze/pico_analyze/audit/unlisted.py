"""Audit of the files that no directory's manifest lists, whether run.json records them or not."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from pico_contract import codec
from pico_contract.files import LINKED, MISSING, irregularity
from pico_contract.layout import RunLayout, is_leftover
from pico_contract.verify import EDITED_SINCE_RECORDED

from pico_analyze.audit.findings import Audit, AuditedRun

_FEW = 3
"""Largest number of files in one directory that are named one by one."""


def check_inputs(run: AuditedRun, result: Audit) -> None:
    """Compare config.yaml and probe.safetensors with the digests in run.json."""
    layout = run.layout
    for path in (layout.config, layout.probe):
        digest = run.manifest.digests.get(path.name)
        problem = irregularity(path)
        if problem == MISSING and digest is None and path != layout.config:
            continue  # a run need not have a probe
        if problem is not None:
            result.add("missing" if problem == MISSING else "damage", path, problem)
        elif digest is None:
            result.uncovered[path] = "run.json records no digest of it"
        elif run.hashes and codec.sha256_file(path) != digest:
            result.add("damage", path, EDITED_SINCE_RECORDED)
        else:
            result.compared.add(path)


def check_rest(run: AuditedRun, result: Audit) -> None:
    """Name every other file of the run as not covered, and report links.

    Links are damage since no reader follows them.
    """
    layout = run.layout
    known = {*result.compared, *result.uncovered}
    known |= {finding.path for finding in result.findings}
    rest: dict[Path, list[Path]] = defaultdict(list)
    for path in _files(layout.root):
        if path.is_symlink():
            result.add("damage", path, LINKED)
        elif path not in known:
            rest[_group(layout, path)].append(path)
    for group, paths in rest.items():
        if len(paths) <= _FEW and group not in _bulk_directories(layout):
            for path in paths:
                result.uncovered[path] = _reason(layout, path)
        else:
            # The reason of the first file stands for all of them.
            number = "1 file" if len(paths) == 1 else f"{len(paths)} files"
            result.uncovered[group] = f"{number}, {_reason(layout, paths[0])}"


def _files(root: Path) -> list[Path]:
    """List every file and every link below `root`; its directories may be links themselves."""
    paths = []
    # Each top directory is walked by its path, since os.walk does not enter linked directories.
    tops = [path for path in root.iterdir() if path.is_dir()]
    for top in [root, *tops]:
        for folder, directories, names in os.walk(top):
            if top == root:
                directories.clear()
            linked = [name for name in directories if (Path(folder) / name).is_symlink()]
            paths += [Path(folder) / name for name in (*names, *linked)]
    return sorted(paths)


def _analyses(layout: RunLayout) -> Path:
    return layout.analysis("any").root.parent


def _bulk_directories(layout: RunLayout) -> tuple[Path, Path]:
    """Return the directories of a run whose files are counted and never named."""
    return layout.logs, _analyses(layout)


def _group(layout: RunLayout, path: Path) -> Path:
    """Return the directory under which a file is named: logs, analysis, or that of the file."""
    parts = path.relative_to(layout.root).parts
    top = layout.root / parts[0]
    return top if top in _bulk_directories(layout) else path.parent


def _reason(layout: RunLayout, path: Path) -> str:
    """Say why no digest covers a file."""
    if any(is_leftover(part) for part in (path, *path.parents)):
        return "left by an interrupted write"
    if path.is_relative_to(_analyses(layout)):
        return "derived from the rest"
    if path.is_relative_to(layout.logs):
        return "whose digests nothing records"
    if path == layout.lock:
        return "which changes while the run is written"
    return "which no manifest lists"
