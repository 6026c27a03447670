"""Audit of the data directory of a run: its files against data.json, and the order of rows that
follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pico_contract import codec, strict_yaml
from pico_contract.data_directory import verify_data
from pico_contract.errors import DamagedError, UserError
from pico_contract.files import read_regular_text
from pico_contract.layout import DataLayout
from pico_contract.order import RowOrder
from pico_contract.schema import DataManifest
from pico_contract.verify import file_damage

from pico_analyze.audit.findings import Audit, AuditedRun

_MOST = 1 << 24
"""Rows of an update beyond which the order is not computed anew: it would take gigabytes."""


def check_data(run: AuditedRun, result: Audit) -> None:
    """Compare the files of the data directory with data.json, where it is still there and holds the
    run's data."""
    named = run.manifest.data.get("path")
    if not isinstance(named, str) or not named:
        return
    layout = DataLayout(Path(named))
    if not layout.manifest.is_file():
        result.uncovered[layout.root] = "the data directory is not here"
        return
    try:
        manifest = codec.read_manifest(layout.manifest, DataManifest, digest=run.hashes)
    except DamagedError as error:
        result.add(
            "damage", layout.manifest, str(error).removeprefix(str(layout.manifest)).lstrip(" :")
        )
        return
    if manifest.fingerprint != run.manifest.data.get("fingerprint"):
        result.uncovered[layout.root] = (
            "it holds other data than the run was trained on (another fingerprint)"
        )
        return
    result.compared.add(layout.manifest)
    result.compared.update(layout.root / name for name in manifest.files)
    for name, entry in manifest.files.items():
        problem = file_damage(layout.root / name, entry, hashes=False)
        if problem is not None:
            result.add("damage", layout.root / name, problem)
            return
    for fault in verify_data(layout.root).faults if run.hashes else ():
        named = [
            layout.root / name
            for name in manifest.files
            if fault.startswith(str(layout.root / name))
        ]
        path = named[0] if named else layout.manifest
        result.add("damage", path, fault.removeprefix(str(path)).lstrip(" ,:"))


def row_order(run: AuditedRun) -> RowOrder | str:
    """The order of rows that run.json (of earlier versions with config.yaml and the data) states,
    or why it is unknown.

    Of damaged files nothing is taken.
    """
    data, seed = run.manifest.data, run.manifest.seeds.get("data")
    batch_size = data["batch_size"] if "batch_size" in data else _configured_batch_size(run)
    n_rows, blocks = _rows_of(run)
    if not all(
        isinstance(one, int) and 0 < one <= most
        for one, most in ((batch_size, _MOST), (n_rows, 1 << 62))
    ):
        return "the order of rows is not known: neither run.json nor the data directory say how many rows there are"
    if seed is None or data.get("order") not in ("shuffled", "shipped", "sequential"):
        return "the order of rows is not known: run.json states no seed or no order of the data"
    shuffle, fingerprint = data["order"] == "shuffled", str(data.get("fingerprint"))
    return RowOrder(n_rows, batch_size, fingerprint, seed, shuffle, blocks)


def _configured_batch_size(run: AuditedRun) -> Any:
    try:
        return strict_yaml.read_mapping(run.layout.config)["train"]["batch_size"]
    except (OSError, UserError, KeyError, TypeError):
        return None


def _rows_of(run: AuditedRun) -> tuple[Any, tuple[int, ...]]:
    """(rows of the training split, rows of each of its shards where they are streamed)."""
    data = run.manifest.data
    if "rows" in data:
        return data["rows"], ()
    layout = DataLayout(Path(str(data.get("path"))))
    try:
        manifest = codec.read_manifest(layout.manifest, DataManifest)
        if manifest.fingerprint != data.get("fingerprint"):
            return None, ()
        blocks: tuple[int, ...] = ()
        if layout.shards("train").name in manifest.files:
            listing = json.loads(read_regular_text(layout.shards("train")))
            blocks = tuple(int(shard["rows"]) for shard in listing["shards"])
        rows = manifest.splits["train"].rows
        return (rows if sum(blocks) in (0, rows) else None), blocks
    except (DamagedError, ValueError, KeyError, TypeError):
        return None, ()
