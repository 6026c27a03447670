"""Audit of metrics.jsonl: its rows, the digests that checkpoints recorded of it, and the order that
it states."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pico_contract.files import MISSING, irregular, read_regular
from pico_contract.metrics_log import Row, read_rows
from pico_contract.order import RowOrder, chain_hash

from pico_analyze.audit.data import row_order
from pico_analyze.audit.findings import Audit, AuditedRun


def check_log(run: AuditedRun, result: Audit) -> None:
    """Check the rows of metrics.jsonl, and its bytes against what the checkpoints recorded of
    them."""
    path = run.layout.metrics
    problem = irregular(path)
    if problem == MISSING:
        if run.manifest.step > 0:
            result.add("log", path, f"is missing, though the run is at step {run.manifest.step}")
        return
    if problem is not None:
        result.add("damage", path, problem)
        return
    rows, odd = read_rows(path)
    for number in odd:
        result.add("log", path, f"line {number} is not a row with a step")
    for sentence in [
        *_gaps(rows),
        *_values(rows),
        *_ends(rows, run.manifest.step, run.manifest.total_steps),
    ]:
        result.add("log", path, sentence)
    if not run.hashes:
        result.uncovered[path] = "its rows were read, and without hashes compared with no digest"
        return
    _check_bytes(run, result, path)
    _check_order(run, result, rows)


def _gaps(rows: Sequence[Row]) -> Iterator[str]:
    """Steps that repeat, go back or are left out, at the beginning as well, and tokens that
    fall."""
    strides = [later["step"] - earlier["step"] for earlier, later in pairwise(rows)]
    usual, first = _usual(strides), next((stride for stride in strides if stride > 0), None)
    if first is not None and rows[0]["step"] > max(usual, first):
        yield f"begins at step {rows[0]['step']}, though rows are {first} apart: its beginning is missing"
    for (old, new), stride in zip(pairwise(rows), strides, strict=True):
        before, step = old["step"], new["step"]
        if stride <= 0:
            yield f"step {step} follows step {before}: rows repeat or go back"
            continue
        if stride > usual:
            yield f"nothing between step {before} and step {step}, with {usual} in between as usual"
        earlier, later = old.get("tokens", 0), new.get("tokens", 0)
        if later < earlier:
            yield f"tokens fall from {earlier} at step {before} to {later} at {step}"


def _usual(strides: Sequence[int]) -> int:
    """The most frequent distance between rows, the smallest of equally frequent ones; 1 where there
    is none."""
    counts = Counter(stride for stride in strides if stride > 0)
    return max(sorted(counts), key=lambda stride: counts[stride], default=1)


def _values(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        loss = row.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            yield f"the loss of step {row['step']} is {loss}"


def _ends(rows: Sequence[Row], newest: int, total: int) -> Iterator[str]:
    if not rows:
        if newest > 0:
            yield f"holds no row, though the run is at step {newest}"
        return
    last = rows[-1]["step"]
    usual = _usual([later["step"] - earlier["step"] for earlier, later in pairwise(rows)])
    if last + max(usual, 1) <= newest:
        yield f"ends at step {last}, though the run is at step {newest}"
    beyond = [row["step"] for row in rows if row["step"] > total]
    if beyond:
        yield f"has a row of step {beyond[0]}, though the run has {total} steps"


def _check_bytes(run: AuditedRun, result: Audit, path: Path) -> None:
    """Compare the file with what each checkpoint recorded of its beginning; the first difference is
    a finding."""
    text = read_regular(path)
    entries = [
        (step, one.metrics)
        for step, one in sorted(run.checkpoints.items())
        if one.metrics is not None
    ]
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
    stated = [
        (row["step"], row["order_hash"]) for row in rows if isinstance(row.get("order_hash"), str)
    ]
    if not stated:
        return
    order = row_order(run)
    if isinstance(order, str):
        result.uncovered[path / "order_hash"] = order
        return
    wrong = _first_wrong(order, stated)
    if wrong is not None:
        what = "is not that of the rows that data, seed and batch size give"
        result.add("log", path, f"the order_hash of step {wrong} {what}")


def _first_wrong(order: RowOrder, stated: Sequence[tuple[int, str]]) -> int | None:
    """The first step whose hash no number of reads gives: a method may leave out rows, but never
    reads them twice."""
    reads, current = 0, ""
    for step, expected in stated:
        while current != expected and reads < step:
            reads += 1
            current = chain_hash(current, order.rows(reads))
        if current != expected:
            return step
    return None
