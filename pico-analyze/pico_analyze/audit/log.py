"""Audit of metrics.jsonl: its rows, its digests in the checkpoints, and the order that it states."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pico_contract.files import MISSING, irregularity, read_regular
from pico_contract.metrics_log import Row, read_lines
from pico_contract.order import RowOrder, chain_hash

from pico_analyze.audit.data import row_order
from pico_analyze.audit.findings import Audit, AuditedRun


def check_log(run: AuditedRun, result: Audit) -> None:
    """Check the rows of metrics.jsonl, and its bytes against the digests in the checkpoints."""
    path = run.layout.metrics
    problem = irregularity(path)
    if problem == MISSING:
        if run.manifest.step > 0:
            result.add(
                "log", path, f"is missing, though the run is at step {run.manifest.step}"
            )
        return
    if problem is not None:
        result.add("damage", path, problem)
        return
    lines = read_lines(path)
    for line in lines:
        if line.row is None and line.text:
            result.add("log", path, f"line {line.number} is not a row with a step")
    rows = [line.row for line in lines if line.row is not None]
    for sentence in [
        *_gaps(rows),
        *_values(rows),
        *_ends(rows, run.manifest.step, run.manifest.total_steps),
    ]:
        result.add("log", path, sentence)
    if not run.hashes:
        result.uncovered[path] = (
            "its rows were read, and without hashes compared with no digest"
        )
        return
    _check_bytes(run, result, path)
    _check_order(run, result, rows)


def _gaps(rows: Sequence[Row]) -> Iterator[str]:
    """Name steps that repeat, go back or are left out, and tokens that fall."""
    strides = _strides(rows)
    usual = _usual(strides)
    forward = [stride for stride in strides if stride > 0]
    if forward and rows[0]["step"] > max(usual, forward[0]):
        start = f"begins at step {rows[0]['step']}, though rows are {forward[0]} apart"
        yield f"{start}: its beginning is missing"
    for earlier, later in pairwise(rows):
        before, step = earlier["step"], later["step"]
        if step <= before:
            yield f"step {step} follows step {before}: rows repeat or go back"
            continue
        if step - before > usual:
            yield f"nothing between step {before} and step {step}, with {usual} in between as usual"
        old_tokens, new_tokens = earlier.get("tokens", 0), later.get("tokens", 0)
        if new_tokens < old_tokens:
            yield f"tokens fall from {old_tokens} at step {before} to {new_tokens} at {step}"


def _strides(rows: Sequence[Row]) -> list[int]:
    return [later["step"] - earlier["step"] for earlier, later in pairwise(rows)]


def _usual(strides: Sequence[int]) -> int:
    """Return the most frequent forward stride, the smallest of several such; 1 without any."""
    counts = Counter(stride for stride in strides if stride > 0)
    return max(sorted(counts), key=lambda stride: counts[stride], default=1)


def _values(rows: Sequence[Row]) -> Iterator[str]:
    """Name the steps whose loss is not finite."""
    for row in rows:
        loss = row.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            yield f"the loss of step {row['step']} is {loss}"


def _ends(rows: Sequence[Row], newest: int, total: int) -> Iterator[str]:
    """Say if the log ends before the run's newest step or goes on beyond its last."""
    if not rows:
        if newest > 0:
            yield f"holds no row, though the run is at step {newest}"
        return
    last = rows[-1]["step"]
    if last + _usual(_strides(rows)) <= newest:
        yield f"ends at step {last}, though the run is at step {newest}"
    beyond = [row["step"] for row in rows if row["step"] > total]
    if beyond:
        yield f"has a row of step {beyond[0]}, though the run has {total} steps"


def _check_bytes(run: AuditedRun, result: Audit, path: Path) -> None:
    """Compare the file with the digest of its beginning that each checkpoint recorded.

    The first difference is the only finding: all later digests differ with it.
    """
    text = read_regular(path)
    recorded = [(step, manifest.metrics) for step, manifest in sorted(run.checkpoints.items())]
    entries = [(step, entry) for step, entry in recorded if entry is not None]
    right = 0
    for step, entry in entries:
        if len(text) < entry.size:
            result.add(
                "log",
                path,
                f"has {len(text)} bytes where it had {entry.size} when step {step} was saved",
            )
            return
        if hashlib.sha256(text[: entry.size]).hexdigest() != entry.sha256:
            result.add(
                "log",
                path,
                f"was altered after byte {right} and before byte {entry.size}, as step {step} shows",
            )
            return
        right = entry.size
    if not entries:
        result.uncovered[path] = "no checkpoint recorded its digest (earlier versions did not)"
    elif len(text) == right:
        result.compared.add(path)
    elif run.manifest.status == "finished":
        result.add(
            "log",
            path,
            f"has {len(text) - right} bytes beyond those that the last checkpoint recorded",
        )
    else:
        result.uncovered[path] = (
            f"its last {len(text) - right} bytes, which were written after the last checkpoint"
        )


def _check_order(run: AuditedRun, result: Audit, rows: Sequence[Row]) -> None:
    """Compute the chained hash of row ids anew, and compare every row that states one."""
    path = run.layout.metrics
    hashed = [row for row in rows if isinstance(row.get("order_hash"), str)]
    stated = [(row["step"], row["order_hash"]) for row in hashed]
    if not stated:
        return
    order = row_order(run)
    if isinstance(order, str):
        result.uncovered[path / "order_hash"] = order
        return
    wrong = _first_wrong(order, stated)
    if wrong is not None:
        problem = "is not that of the rows that data, seed and batch size give"
        result.add("log", path, f"the order_hash of step {wrong} {problem}")


def _first_wrong(order: RowOrder, stated: Sequence[tuple[int, str]]) -> int | None:
    """Return the first step whose hash no number of reads gives, or None."""
    reads, current = 0, ""
    for step, expected in stated:
        # A method may leave out updates, but reads no rows twice: at most one read a step.
        while current != expected and reads < step:
            reads += 1
            current = chain_hash(current, order.rows(reads))
        if current != expected:
            return step
    return None
