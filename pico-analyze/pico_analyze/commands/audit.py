"""pico-analyze audit: the findings of an audit, as lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pico_contract.layout import RunLayout
from pico_contract.terminal import one_line

from pico_analyze.commands.progress import Say, show_progress

if TYPE_CHECKING:
    from pico_analyze.audit.findings import Audit
    from pico_analyze.sources.base import Source


def audit_run(path: Path, hashes: bool, say: Say) -> tuple[list[str], bool]:
    """A line for each finding of the audit, for what it did not cover and to sum up, and whether
    the run is sound.

    Raises:
        UserError: no such run.
    """
    from pico_analyze.audit.checks import audit
    from pico_analyze.sources.open import open_source
    from pico_analyze.sources.run import Run, check_run

    if not RunLayout(path).manifest.is_file():
        source = open_source(path)
        if not isinstance(source, Run):
            return _audit_of_series(source)
    with show_progress(say, "read") as progress:
        result = audit(check_run(path).root, hashes, progress)
    lines = [
        *map(str, result.findings),
        *(one_line(f"not covered: {p}: {why}") for p, why in result.uncovered.items()),
    ]
    return [*lines, _sum_of(result, hashes)], not result.findings


def _audit_of_series(source: Source) -> tuple[list[str], bool]:
    from pico_analyze.audit.series import audit_series

    lines = audit_series(source)
    looked = f"{len(source.steps)} steps, compared with each other by the hashes of their files"
    found = (
        f"{len(lines)} finding{'s' if len(lines) > 1 else ''} in" if lines else "nothing found in"
    )
    return [*lines, f"{found} {looked}; no manifest says what they should be"], not lines


def _sum_of(result: Audit, hashes: bool) -> str:
    compared = (
        "every byte was compared with a recorded sha256"
        if hashes
        else "the size alone was compared"
    )
    looked = f"{result.directories} checkpoints and snapshots, {result.evaluations} evaluations; of"
    looked += f" {len(result.compared)} files {compared}"
    if result.uncovered:
        looked += f"; not covered: {len(result.uncovered)} (named above)"
    count = len(result.findings)
    return f"{count} finding{'s' if count > 1 else ''} in {looked}" if count else f"sound: {looked}"
