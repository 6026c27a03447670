"""Audit of the data directory of a run: its files against data.json, and its order of rows."""

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
from pico_contract.verify import damaged_files, without_path

from pico_analyze.audit.findings import Audit, AuditedRun

_MOST_ROWS_OF_UPDATE = 1 << 24
"""Largest batch whose order is computed anew; beyond it, it would take gigabytes."""
_MOST_ROWS = 1 << 62
"""Largest number of rows in the data that is believed."""
_UNKNOWN = "the order of rows is not known"


def check_data(run: AuditedRun, result: Audit) -> None:
    """Compare the data directory with data.json, if it still exists and contains the run's data."""
    recorded = run.manifest.data.get("path")
    if not isinstance(recorded, str) or not recorded:
        return
    layout = DataLayout(Path(recorded))
    if not layout.manifest.is_file():
        result.uncovered[layout.root] = "the data directory is not here"
        return
    try:
        manifest = codec.read_manifest(layout.manifest, DataManifest, digest=run.hashes)
    except DamagedError as error:
        result.add("damage", layout.manifest, without_path(str(error), layout.manifest))
        return
    if manifest.fingerprint != run.manifest.data.get("fingerprint"):
        result.uncovered[layout.root] = (
            "it holds other data than the run was trained on (another fingerprint)"
        )
        return
    result.compared.add(layout.manifest)
    result.compared.update(layout.root / name for name in manifest.files)
    for path, problem in damaged_files(layout.root, manifest, hashes=False):
        # A file that is missing or of another size makes every further check fail as well.
        result.add("damage", path, problem)
        return
    if not run.hashes:
        return
    files = [layout.root / name for name in manifest.files]
    for fault in verify_data(layout.root).faults:
        at_fault = [file for file in files if fault.startswith(str(file))]
        path = at_fault[0] if at_fault else layout.manifest
        result.add("damage", path, without_path(fault, path))


def row_order(run: AuditedRun) -> RowOrder | str:
    """Return the order of rows that run.json states, or a sentence that says why it is unknown.

    For runs of earlier versions, config.yaml and the data directory add what run.json lacks.
    Damaged files are not used.
    """
    data, seed = run.manifest.data, run.manifest.seeds.get("data")
    batch_size = data["batch_size"] if "batch_size" in data else _configured_batch_size(run)
    n_rows, blocks = _rows_of(run)
    if not _is_count(batch_size, _MOST_ROWS_OF_UPDATE) or not _is_count(n_rows, _MOST_ROWS):
        return (
            f"{_UNKNOWN}: neither run.json nor the data directory say how many rows there are"
        )
    order = data.get("order")
    if seed is None or order not in ("shuffled", "shipped", "sequential"):
        return f"{_UNKNOWN}: run.json states no seed or no order of the data"
    fingerprint = str(data.get("fingerprint"))
    return RowOrder(n_rows, batch_size, fingerprint, seed, order == "shuffled", blocks)


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and 0 < value <= most


def _configured_batch_size(run: AuditedRun) -> Any:
    """Return the batch size in config.yaml, or None if that cannot be read."""
    try:
        return strict_yaml.read_mapping(run.layout.config)["train"]["batch_size"]
    except (OSError, UserError, KeyError, TypeError):
        return None


def _rows_of(run: AuditedRun) -> tuple[Any, tuple[int, ...]]:
    """Return (rows of the training split, rows of each of its shards if they are streamed)."""
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
        # Shards that do not add up to the split tell nothing about the order.
        return (rows if sum(blocks) in (0, rows) else None), blocks
    except (DamagedError, ValueError, KeyError, TypeError):
        return None, ()
